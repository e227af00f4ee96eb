"""Layers from real transformers blocks and configurations."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import transformers

from moe_hw.errors import ModelError, UnsupportedLayer
from moe_hw.families import FAMILIES, layer_specs, moe_blocks, read_spec
from moe_hw.layer import MoELayer
from moe_hw.reference import reference
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec
from tests.host.models import CONFIGS, DEEPSEEK, MOE, SHARED, SIZES, config_of

BLOCKS = {
    "Qwen3VLMoeTextSparseMoeBlock": ("qwen3_vl_moe", "Qwen3VLMoeTextConfig", MOE),
    "Qwen3OmniMoeThinkerTextSparseMoeBlock": ("qwen3_omni_moe", "Qwen3OmniMoeTextConfig", MOE),
    "Qwen3OmniMoeTalkerTextSparseMoeBlock": ("qwen3_omni_moe", "Qwen3OmniMoeTalkerTextConfig", SHARED),
    "Qwen4ExpTextSparseMoeBlock": ("qwen4_exp", "Qwen4ExpTextConfig", SHARED),
    "DeepseekOcr2TextMoe": ("deepseek_ocr2", "DeepseekOcr2TextConfig", DEEPSEEK),
    "UnlimitedOcrTextMoe": ("unlimited_ocr", "UnlimitedOcrTextConfig", DEEPSEEK),
}
"""Blocks of models that are more than language models, or cannot be tiny: module, configuration and sizes."""


def model_of(config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def block_of(config: Any) -> Any:
    return moe_blocks(model_of(config))[0][3]


def blocks_of(name: str) -> list[Any]:
    """The blocks of a tiny model, or one that is made alone, with weights that keep activations of order one."""
    if name in CONFIGS:
        blocks: list[Any] = [block for *_, block in moe_blocks(model_of(config_of(name)))]
    else:
        module, config_class, sizes = BLOCKS[name]
        package = f"transformers.models.{module}"
        config = getattr(importlib.import_module(f"{package}.configuration_{module}"), config_class)(**SIZES, **sizes)
        config._experts_implementation = "eager"
        blocks = [getattr(importlib.import_module(f"{package}.modeling_{module}"), name)(config).eval()]
    torch.manual_seed(1)
    for block in blocks:
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return blocks


@pytest.mark.parametrize("name", CONFIGS)
def test_a_models_blocks_have_the_specs_of_its_configuration(name: str) -> None:
    config = config_of(name)
    blocks = moe_blocks(model_of(config))
    assert len(blocks) == 2
    assert all(getattr(parent, attribute) is block for _, parent, attribute, block in blocks)
    assert [read_spec(block) for *_, block in blocks] == layer_specs(config)


@pytest.mark.parametrize("name", [*CONFIGS, *BLOCKS])
def test_the_float_reference_equals_the_block(name: str) -> None:
    """1e-5 of outputs of order one: float32 sums of some 50 products, against float64."""
    for block in blocks_of(name):
        layer = MoELayer.from_module(block)
        x = torch.randn(9, 40, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            output = block(x[None])[0]
        assert output.abs().max() > 0.1
        torch.testing.assert_close(reference(layer, x).output, output, rtol=1e-5, atol=1e-5)


def test_every_family_is_tested() -> None:
    tested = {type(block).__name__ for name in (*CONFIGS, *BLOCKS) for block in blocks_of(name)}
    assert tested == {family.block for family in FAMILIES}


def test_specs() -> None:
    assert layer_specs(config_of("mixtral")) == [LayerSpec(40, RouterSpec(4, 2), ExpertSpec(24))] * 2
    gated = LayerSpec(40, RouterSpec(4, 2, normalise=False), ExpertSpec(24), SharedSpec(33, gated=True))
    assert layer_specs(config_of("qwen2_moe")) == [gated] * 2
    merged = LayerSpec(40, RouterSpec(6, 2, normalise=False), ExpertSpec(24), SharedSpec(48, gated=False))
    assert layer_specs(config_of("deepseek_v2")) == [merged] * 2


def test_weights_are_those_of_the_block() -> None:
    block = block_of(config_of("qwen2_moe"))
    layer = MoELayer.from_module(block)
    gate, up, down = layer.expert(3)
    assert torch.equal(torch.cat((gate, up)), block.experts.gate_up_proj[3])
    assert torch.equal(down, block.experts.down_proj[3])
    assert torch.equal(layer.router_weight(), block.gate.weight)
    shared = layer.shared()
    assert shared is not None and torch.equal(shared.up, block.shared_expert.up_proj.weight)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "router.groups: expected greedy, got group_"),
        ("cohere2_moe", {"expert_selection_fn": "sigmoid"}, "router.score: expected softmax, got sigmoid"),
        ("aria_text", {"hidden_act": "relu"}, "shared.activation: expected silu, got ReLU"),
    ],
)
def test_a_setting_that_is_not_supported_is_named(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedLayer, match=message):
        layer_specs(config_of(family, **changes))


def test_a_configuration_that_cannot_be_built() -> None:
    with pytest.raises(ModelError, match=r"qwen3_moe: expected a configuration that .* can build, got: .*; mend"):
        layer_specs(config_of("qwen3_moe", decoder_sparse_step=0))


def test_dense_layers_are_not_counted() -> None:
    config = config_of("qwen3_moe", mlp_only_layers=[1])
    assert len(layer_specs(config)) == len(moe_blocks(model_of(config))) == 1
    config = config_of("qwen2_moe", decoder_sparse_step=2)
    assert len(layer_specs(config)) == len(moe_blocks(model_of(config))) == 1


def test_another_activation_is_refused() -> None:
    config = config_of("qwen3_moe", hidden_act="gelu")
    with pytest.raises(UnsupportedLayer, match=r"expert\.activation: expected silu, got GELUActivation"):
        layer_specs(config)
    with pytest.raises(UnsupportedLayer, match=r"expert\.activation: expected silu, got GELUActivation"):
        MoELayer.from_module(block_of(config))


def test_an_unknown_block_is_refused_by_name() -> None:
    config = transformers.GptOssConfig(**SIZES, num_local_experts=4, intermediate_size=32)
    message = "block class: expected one of those in moe_hw/families.py, got GptOssMLP"
    with pytest.raises(UnsupportedLayer, match=message):
        layer_specs(config)
    with pytest.raises(UnsupportedLayer, match=message):
        moe_blocks(model_of(config))


def test_a_dense_model_is_not_a_moe_model() -> None:
    config = transformers.LlamaConfig(**SIZES, intermediate_size=32)
    with pytest.raises(ModelError, match="LlamaForCausalLM is not a MoE model"):
        layer_specs(config)
    with pytest.raises(ModelError, match="LlamaForCausalLM is not a MoE model"):
        moe_blocks(model_of(config))


def test_a_moe_configuration_with_dense_layers_only() -> None:
    with pytest.raises(ModelError, match="Qwen3MoeForCausalLM is not a MoE model: none of its modules has experts"):
        layer_specs(config_of("qwen3_moe", mlp_only_layers=[0, 1]))


def test_a_bias_is_refused() -> None:
    block = block_of(config_of("mixtral"))
    block.experts.down_proj_bias = torch.nn.Parameter(torch.zeros(4, 40))
    with pytest.raises(UnsupportedLayer, match=r"MixtralSparseMoeBlock: expected no parameter experts\.down_proj_bias"):
        MoELayer.from_module(block)


def test_experts_in_a_module_list_are_refused() -> None:
    block = block_of(config_of("mixtral"))
    block.experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(UnsupportedLayer, match=r"expected the parameter experts\.down_proj of transformers 5\.x"):
        MoELayer.from_module(block)


def test_shapes_that_contradict_each_other() -> None:
    block = block_of(config_of("olmoe"))
    block.experts.gate_up_proj = torch.nn.Parameter(torch.zeros(5, 41, 40))
    with pytest.raises(ModelError, match=r"gate_up_proj: expected shape \[5, 48, 40\], got \[5, 41, 40\]"):
        MoELayer.from_module(block)
    block.experts.gate_up_proj = torch.nn.Parameter(torch.zeros(5 * 48, 40))
    with pytest.raises(ModelError, match=r"expected weights \[E, 2I, H\]"):
        MoELayer.from_module(block)


def test_weights_that_are_not_loaded() -> None:
    with torch.device("meta"):
        block = block_of(config_of("qwen3_moe"))
    with pytest.raises(ModelError, match="expected a loaded weight, got one on the meta device"):
        MoELayer.from_module(block)
