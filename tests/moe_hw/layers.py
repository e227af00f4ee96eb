"""Small layers that the tests share."""

from __future__ import annotations

from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec

SPECS = {
    "ones": LayerSpec(1, RouterSpec(1, 1), ExpertSpec(1)),
    "twos": LayerSpec(2, RouterSpec(2, 1, normalise=False), ExpertSpec(2), SharedSpec(1, gated=False)),
    "odd": LayerSpec(33, RouterSpec(5, 2), ExpertSpec(45), SharedSpec(7, gated=True)),
    "all experts": LayerSpec(31, RouterSpec(7, 7, normalise=False), ExpertSpec(65)),
    "blocks": LayerSpec(128, RouterSpec(16, 4, normalise=False), ExpertSpec(96), SharedSpec(160, gated=True)),
}
"""Sizes 1, 2, odd, around a block and whole blocks; every combination of the shared expert and of normalising."""
