"""Presets: the shapes of the published models."""

from __future__ import annotations

import pytest

from moe_hw.arch import Arch
from moe_hw.errors import UsageError
from moe_hw.limits import Footprint
from moe_hw.presets import PRESETS, find_preset


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mixtral-8x7b", (4096, 14336, 8, 2, None, 32)),
        ("qwen3-30b-a3b", (2048, 768, 128, 8, None, 48)),
        ("olmoe-1b-7b", (2048, 1024, 64, 8, None, 16)),
        ("qwen1.5-moe-a2.7b", (2048, 1408, 60, 4, (5632, True), 24)),
        ("deepseek-v3", (7168, 2048, 256, 8, (2048, False), 58)),
        ("gpt-oss-20b", (2880, 2880, 32, 4, None, 24)),
        ("llama4-scout", (5120, 8192, 16, 1, (8192, False), 48)),
        ("granite-1b-a400m", (1024, 512, 32, 8, None, 24)),
        ("switch-base-8", (768, 2048, 8, 1, None, 12)),
        ("m3vit", (192, 384, 16, 2, None, 6)),
    ],
)
def test_shapes(name: str, shape: tuple[object, ...]) -> None:
    preset = find_preset(name)
    spec = preset.spec
    shared = (spec.shared.intermediate, spec.shared.gated) if spec.shared else None
    router = spec.router
    assert (spec.hidden, spec.expert.intermediate, router.experts, router.top_k, shared, preset.layers) == shape
    assert "\n" not in preset.stands_in_for


def test_bytes_of_a_decoded_token_are_the_published_ones() -> None:
    # Codes of 4 bits take 0.5 bytes a weight, ours with their scales 0.53.
    for name, gigabytes in (("olmoe-1b-7b", 0.415), ("qwen3-30b-a3b", 0.934), ("mixtral-8x7b", 5.81)):
        preset = PRESETS[name]
        read = Footprint(preset.spec, Arch(columns=16), 4).weight_bytes(range(preset.spec.router.top_k)) * preset.layers
        assert read / 1e9 == pytest.approx(gigabytes, rel=0.08)


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="got 'Mixtral8x7b'; did you mean mixtral-8x7b?"):
        find_preset("Mixtral8x7b")
    with pytest.raises(UsageError, match="expected one of mixtral-8x7b, .*; or give a checkpoint directory"):
        find_preset("xyzzy")
