"""Whole blocks of the families whose router the accelerator runs, and the configurations of their models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from moe_hw.block import read_spec
from moe_hw.errors import ModelError, UnsupportedLayer
from moe_hw.families import FAMILIES
from moe_hw.layer import MoELayer
from moe_hw.sites import layer_specs, moe_sites
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec
from tests.host.models import CONFIGS, SIZES, config_of
from tests.moe_hw.blocks import ENTRIES


def model_of(config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def block_of(config: Any) -> Any:
    return moe_sites(model_of(config))[0].module


@pytest.mark.parametrize("name", CONFIGS)
def test_a_models_blocks_have_the_specs_of_its_configuration(name: str) -> None:
    config = config_of(name)
    sites = moe_sites(model_of(config))
    assert len(sites) == 2
    assert all(getattr(site.parent, site.attribute) is site.module for site in sites)
    assert [site.spec for site in sites] == layer_specs(config)


def test_every_family_is_one_of_the_entries() -> None:
    assert {family.block for family in FAMILIES} <= {entry.block for entry in ENTRIES.values()}


def test_specs() -> None:
    assert layer_specs(config_of("mixtral")) == [LayerSpec(40, RouterSpec(4, 2), ExpertSpec(24))] * 2
    gated = LayerSpec(40, RouterSpec(4, 2, normalise=False), ExpertSpec(24), SharedSpec(33, gated=True))
    assert layer_specs(config_of("qwen2_moe")) == [gated] * 2
    merged = LayerSpec(40, RouterSpec(6, 2, normalise=False, scale=1.7), ExpertSpec(24), SharedSpec(48, gated=False))
    assert layer_specs(config_of("deepseek_v2")) == [merged] * 2
    form = ExpertSpec(24, "quick_gelu", bias=True, limit=7.0, up_offset=1.0)
    assert layer_specs(config_of("gpt_oss")) == [LayerSpec(40, RouterSpec(4, 2, bias=True), form)] * 2


def test_weights_are_those_of_the_block() -> None:
    block = block_of(config_of("qwen2_moe"))
    layer = MoELayer.from_module(block)
    gate, up, down, *_ = layer.expert(3)
    assert gate is not None and torch.equal(torch.cat((gate, up)), block.experts.gate_up_proj[3])
    assert torch.equal(down, block.experts.down_proj[3])
    router = layer.router_weight()
    assert router is not None and torch.equal(router, block.gate.weight)
    shared = layer.shared()
    assert shared is not None and torch.equal(shared.up, block.shared_expert.up_proj.weight)


def test_interleaved_rows_and_biases_are_told_apart() -> None:
    block = ENTRIES["gpt_oss"].build()
    gate, up, down, gate_bias, up_bias, down_bias = MoELayer.from_module(block).expert(2)
    experts = block.experts
    assert gate is not None and gate_bias is not None and up_bias is not None and down_bias is not None
    assert torch.equal(gate, experts.gate_up_proj[2].T[0::2]) and torch.equal(up, experts.gate_up_proj[2].T[1::2])
    assert torch.equal(gate_bias, experts.gate_up_proj_bias[2, 0::2]) and torch.equal(down, experts.down_proj[2].T)
    assert torch.equal(up_bias, experts.gate_up_proj_bias[2, 1::2])
    assert torch.equal(down_bias, experts.down_proj_bias[2])


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("ernie4_5_moe", {"moe_norm_min": 0.1}, "router.norm_min: expected at most 1e-06, .*, got 0.1"),
        ("deepseek_v4 by token", {}, "router.choice: expected the largest scores, got a table of token ids"),
        ("deepseek_v4", {"scoring_func": "tanh"}, "router.score: expected softmax or .* or given, got Tanh"),
        ("deepseek_v3", {"n_group": 6, "topk_group": 3}, "router.groups.count: expected 1 to 3, got 6"),
        ("laguna", {"moe_router_logit_softcapping": 30.0}, "router.softcap: expected 0, got 30.0"),
        ("aria", {"hidden_act": "relu"}, "shared.activation: expected silu as of the routed experts, got relu"),
        ("dbrx", {"ffn_config": {"moe_normalize_expert_weights": 2.0}}, "router.norm: expected 1, got 2.0"),
    ],
)
def test_a_setting_of_a_block_that_is_not_supported_is_named(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedLayer, match=message):
        read_spec(ENTRIES[family].build(**changes))


def test_a_configuration_that_cannot_be_built() -> None:
    with pytest.raises(ModelError, match=r"qwen3_moe: expected a configuration that .* can build, got: .*; mend"):
        layer_specs(config_of("qwen3_moe", decoder_sparse_step=0))


def test_dense_layers_are_not_counted() -> None:
    config = config_of("qwen3_moe", mlp_only_layers=[1])
    assert len(layer_specs(config)) == len(moe_sites(model_of(config))) == 1
    config = config_of("qwen2_moe", decoder_sparse_step=2)
    assert len(layer_specs(config)) == len(moe_sites(model_of(config))) == 1


def test_activations_are_told_apart_by_what_they_compute() -> None:
    names = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu"}
    for name, activation in names.items():
        assert layer_specs(config_of("qwen3_moe", hidden_act=name))[0].expert.activation == activation
    with pytest.raises(UnsupportedLayer, match=r"expert\.glu: expected .*, got Qwen3MoeExperts\._apply_gate"):
        layer_specs(config_of("qwen3_moe", hidden_act="tanh"))


def test_an_unknown_block_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedLayer, match="block class: expected one of those in moe_hw/families.py, got Linear"):
        read_spec(torch.nn.Linear(2, 2))


def test_a_dense_model_is_not_a_moe_model() -> None:
    config = transformers.LlamaConfig(**SIZES, intermediate_size=32)
    with pytest.raises(ModelError, match="LlamaForCausalLM is not a MoE model"):
        layer_specs(config)
    with pytest.raises(ModelError, match="LlamaForCausalLM is not a MoE model"):
        moe_sites(model_of(config))


def test_a_moe_configuration_with_dense_layers_only() -> None:
    with pytest.raises(ModelError, match="Qwen3MoeForCausalLM is not a MoE model: none of its modules has experts"):
        layer_specs(config_of("qwen3_moe", mlp_only_layers=[0, 1]))


def test_a_bias_is_refused() -> None:
    block = block_of(config_of("mixtral"))
    block.experts.down_proj_bias = torch.nn.Parameter(torch.zeros(4, 40))
    with pytest.raises(UnsupportedLayer, match="MixtralExperts: expected the parameters .* down_proj_bias is"):
        MoELayer.from_module(block)


def test_experts_in_a_module_list_are_refused() -> None:
    block = block_of(config_of("mixtral"))
    block.experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(UnsupportedLayer, match="experts: expected a class of .* interface, got ModuleList"):
        MoELayer.from_module(block)


def test_another_parameter_of_a_block_is_refused() -> None:
    block = block_of(config_of("mixtral"))
    block.adapter = torch.nn.Parameter(torch.zeros(4, 40))
    with pytest.raises(UnsupportedLayer, match="MixtralSparseMoeBlock: expected no parameter adapter"):
        MoELayer.from_module(block)


def test_shapes_that_contradict_each_other() -> None:
    block = block_of(config_of("olmoe"))
    block.experts.gate_up_proj = torch.nn.Parameter(torch.zeros(5, 41, 40))
    with pytest.raises(ModelError, match=r"gate_up_proj: expected shape \[5, 48, 40\], got \[5, 41, 40\]"):
        MoELayer.from_module(block)
    block.experts.gate_up_proj = torch.nn.Parameter(torch.zeros(5 * 48, 40))
    with pytest.raises(ModelError, match="OlmoeExperts: expected weights of three dimensions"):
        MoELayer.from_module(block)


def test_weights_that_are_not_loaded() -> None:
    with torch.device("meta"):
        block = block_of(config_of("qwen3_moe"))
    with pytest.raises(ModelError, match="expected a loaded weight, got one on the meta device"):
        MoELayer.from_module(block)
