"""Layers from real transformers blocks and configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from moe_hw.errors import ModelError, UnsupportedLayer
from moe_hw.families import FAMILIES, layer_specs, moe_blocks
from moe_hw.layer import MoELayer
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec

SMALL = {
    "vocab_size": 11,
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 18,
    "num_experts": 5,
    "num_experts_per_tok": 3,
}

CONFIGS = {
    "mixtral": lambda **more: MixtralConfig(**SMALL, intermediate_size=21, **more),
    "qwen3_moe": lambda **more: Qwen3MoeConfig(**SMALL, moe_intermediate_size=21, norm_topk_prob=True, **more),
    "olmoe": lambda **more: OlmoeConfig(**SMALL, intermediate_size=21, **more),
    "qwen2_moe": lambda **more: Qwen2MoeConfig(
        **SMALL, moe_intermediate_size=21, shared_expert_intermediate_size=35, **more
    ),
}


def model_of(config: Any, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)


def block_of(config: Any, seed: int = 0) -> Any:
    return moe_blocks(model_of(config, seed))[0][3]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_models_blocks_have_the_specs_of_its_configuration(name: str) -> None:
    config = CONFIGS[name]()
    model = model_of(config)
    blocks = moe_blocks(model)
    assert [qualified for qualified, *_ in blocks] == [f"model.layers.{index}.mlp" for index in range(3)]
    assert all(getattr(parent, attribute) is block for _, parent, attribute, block in blocks)
    assert [MoELayer.from_module(block).spec for *_, block in blocks] == layer_specs(config)
    assert layer_specs(config)[0] == LayerSpec(
        36,
        RouterSpec(5, 3, normalise=name in ("mixtral", "qwen3_moe")),
        ExpertSpec(21),
        SharedSpec(35, gated=True) if name == "qwen2_moe" else None,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_of_the_block(name: str) -> None:
    block = block_of(CONFIGS[name]())
    layer = MoELayer.from_module(block)
    gate, up, down = layer.expert(4)
    assert torch.equal(torch.cat((gate, up)), block.experts.gate_up_proj[4])
    assert torch.equal(down, block.experts.down_proj[4])
    assert torch.equal(layer.router_weight(), block.gate.weight)
    shared = layer.shared()
    if shared is not None:
        assert torch.equal(shared.gate, block.shared_expert.gate_proj.weight)
        assert torch.equal(shared.up, block.shared_expert.up_proj.weight)
        assert torch.equal(shared.down, block.shared_expert.down_proj.weight)


def test_dense_layers_are_not_counted() -> None:
    config = CONFIGS["qwen3_moe"](mlp_only_layers=[2])
    assert len(layer_specs(config)) == len(moe_blocks(model_of(config))) == 2
    config = CONFIGS["qwen2_moe"](decoder_sparse_step=2)
    assert len(layer_specs(config)) == len(moe_blocks(model_of(config))) == 1


def test_every_family_is_tested() -> None:
    assert set(CONFIGS) == {family.model_type for family in FAMILIES}


@pytest.mark.parametrize("name", CONFIGS)
def test_another_activation_is_refused(name: str) -> None:
    config = CONFIGS[name](hidden_act="gelu")
    with pytest.raises(UnsupportedLayer, match=r"expert\.activation: expected silu, got gelu"):
        layer_specs(config)
    with pytest.raises(UnsupportedLayer, match=r"expert\.activation: expected silu, got GELUActivation"):
        MoELayer.from_module(block_of(config))


def test_an_unknown_block_is_refused_by_name() -> None:
    config = GptOssConfig(**(SMALL | {"num_local_experts": 4}), intermediate_size=32)
    with pytest.raises(UnsupportedLayer, match="model type: expected mixtral or .*, got gpt_oss"):
        layer_specs(config)
    with pytest.raises(UnsupportedLayer, match="block class: expected MixtralSparseMoeBlock or .*, got GptOssMLP"):
        moe_blocks(model_of(config))


def test_a_dense_model_is_not_a_moe_model() -> None:
    config = LlamaConfig(**SMALL, intermediate_size=32)
    del config.num_experts
    with pytest.raises(ModelError, match="llama is not a MoE model"):
        layer_specs(config)
    with pytest.raises(ModelError, match="LlamaForCausalLM is not a MoE model"):
        moe_blocks(model_of(config))


def test_a_moe_configuration_with_dense_layers_only() -> None:
    with pytest.raises(ModelError, match="qwen3_moe: expected a MoE layer, got 3 dense ones"):
        layer_specs(CONFIGS["qwen3_moe"](mlp_only_layers=[0, 1, 2]))


def test_a_bias_is_refused() -> None:
    block = block_of(CONFIGS["mixtral"]())
    block.experts.down_proj_bias = torch.nn.Parameter(torch.zeros(5, 36))
    with pytest.raises(UnsupportedLayer, match=r"MixtralSparseMoeBlock: expected no parameter experts\.down_proj_bias"):
        MoELayer.from_module(block)


def test_experts_in_a_module_list_are_refused() -> None:
    block = block_of(CONFIGS["mixtral"]())
    block.experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(UnsupportedLayer, match=r"expected the parameter experts\.down_proj of transformers 5\.x"):
        MoELayer.from_module(block)


def test_shapes_that_contradict_each_other() -> None:
    block = block_of(CONFIGS["olmoe"]())
    block.experts.gate_up_proj = torch.nn.Parameter(torch.zeros(5, 41, 36))
    with pytest.raises(ModelError, match=r"gate_up_proj: expected shape \[5, 42, 36\], got \[5, 41, 36\]"):
        MoELayer.from_module(block)
    block.experts.gate_up_proj = torch.nn.Parameter(torch.zeros(5 * 42, 36))
    with pytest.raises(ModelError, match=r"expected weights \[E, 2I, H\]"):
        MoELayer.from_module(block)


def test_weights_that_are_not_loaded() -> None:
    with torch.device("meta"):
        block = block_of(CONFIGS["qwen3_moe"]())
    with pytest.raises(ModelError, match="expected a loaded weight, got one on the meta device"):
        MoELayer.from_module(block)
