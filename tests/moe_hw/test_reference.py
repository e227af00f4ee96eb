"""The float reference against the real transformers blocks."""

from __future__ import annotations

import pytest
import torch
from transformers import MixtralConfig, OlmoeConfig, Qwen2MoeConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from moe_hw.errors import InputError
from moe_hw.layer import MoELayer, random_layer
from moe_hw.reference import reference
from tests.moe_hw.layers import SPECS

BLOCKS = {
    "mixtral": (MixtralSparseMoeBlock, MixtralConfig, "intermediate_size"),
    "qwen3_moe": (Qwen3MoeSparseMoeBlock, Qwen3MoeConfig, "moe_intermediate_size"),
    "olmoe": (OlmoeSparseMoeBlock, OlmoeConfig, "intermediate_size"),
    "qwen2_moe": (Qwen2MoeSparseMoeBlock, Qwen2MoeConfig, "moe_intermediate_size"),
}


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    ("hidden", "inter", "experts", "top_k", "tokens"),
    [(1, 1, 4, 1, 1), (2, 3, 4, 4, 2), (33, 17, 5, 2, 7), (64, 96, 16, 8, 31)],
)
@pytest.mark.parametrize("name", BLOCKS)
def test_equals_the_block(
    name: str, hidden: int, inter: int, experts: int, top_k: int, tokens: int, normalise: bool
) -> None:
    block_class, config_class, inter_key = BLOCKS[name]
    sizes = {"hidden_size": hidden, inter_key: inter, "num_experts": experts, "num_experts_per_tok": top_k}
    if name == "qwen2_moe":
        sizes["shared_expert_intermediate_size"] = inter + 1
    if name != "mixtral":
        sizes["norm_topk_prob"] = normalise
    config = config_class(num_attention_heads=1, **sizes)
    config._experts_implementation = "eager"
    torch.manual_seed(hidden)
    block = block_class(config).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    x = torch.randn(tokens, hidden)

    result = reference(MoELayer.from_module(block), x)

    with torch.no_grad():
        _, weights, chosen = block.gate(x)
        output = block(x[None])[0]
    torch.testing.assert_close(result.output, output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.weights, weights, rtol=1e-5, atol=1e-6)
    assert torch.equal(result.experts, chosen)


def test_ties_go_to_the_lower_expert() -> None:
    layer = random_layer(SPECS["odd"])
    result = reference(layer, torch.zeros(3, 33))
    assert result.experts.tolist() == [[0, 1]] * 3
    assert not result.output.any()


def test_no_tokens() -> None:
    result = reference(random_layer(SPECS["blocks"]), torch.zeros(0, 128))
    assert result.output.shape == (0, 128) and result.experts.shape == (0, 4)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"tokens: expected shape \[tokens, 33\], got \[2, 32\]"):
        reference(random_layer(SPECS["odd"]), torch.zeros(2, 32))
