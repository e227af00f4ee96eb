"""The MoE layers of published models at their full size, by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from moe_hw.errors import UsageError
from moe_hw.spec import ExpertSpec, GroupSpec, LayerSpec, RouterSpec, SharedSpec


@dataclass(frozen=True)
class Preset:
    """A model's MoE layers.

    Attributes:
        spec: one of them; they are all of the same shape.
        layers: how many the model has.
        stands_in_for: what the model does otherwise, in one line; empty if the spec is the model's own.
    """

    spec: LayerSpec
    layers: int
    stands_in_for: str = ""


PRESETS = {
    "mixtral-8x7b": Preset(LayerSpec(4096, RouterSpec(8, 2), ExpertSpec(14336)), 32),
    "qwen3-30b-a3b": Preset(LayerSpec(2048, RouterSpec(128, 8), ExpertSpec(768)), 48),
    "olmoe-1b-7b": Preset(LayerSpec(2048, RouterSpec(64, 8, normalise=False), ExpertSpec(1024)), 16),
    "qwen1.5-moe-a2.7b": Preset(
        LayerSpec(2048, RouterSpec(60, 4, normalise=False), ExpertSpec(1408), SharedSpec(5632, gated=True)), 24
    ),
    "deepseek-v3": Preset(
        LayerSpec(
            7168,
            RouterSpec(256, 8, "sigmoid", correction="score", groups=GroupSpec(8, 4)),
            ExpertSpec(2048),
            SharedSpec(2048, gated=False),
        ),
        58,
    ),
    "gpt-oss-20b": Preset(
        LayerSpec(
            2880,
            RouterSpec(32, 4, bias=True),
            ExpertSpec(2880, "quick_gelu", bias=True, limit=7.0, up_offset=1.0),
        ),
        24,
    ),
    "llama4-scout": Preset(
        LayerSpec(5120, RouterSpec(16, 1, normalise=False), ExpertSpec(8192), SharedSpec(8192, gated=False)),
        48,
        "sigmoid scores that weight the expert's input",
    ),
    "granite-1b-a400m": Preset(LayerSpec(1024, RouterSpec(32, 8), ExpertSpec(512)), 24),
    "switch-base-8": Preset(
        LayerSpec(768, RouterSpec(8, 1, normalise=False), ExpertSpec(2048, "relu", gated=False)),
        12,
        "a capacity",
    ),
    "m3vit": Preset(
        LayerSpec(192, RouterSpec(16, 2, normalise=False), ExpertSpec(384, "gelu", gated=False, bias=True)), 6
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name.lower(), PRESETS, 1)
        hint = f"did you mean {close[0]}?" if close else "or give a checkpoint directory"
        raise UsageError(f"model: expected one of {', '.join(PRESETS)}, got {name!r}; {hint}")
    return PRESETS[name]
