"""Specs: what they derive, what they refuse and how they say so."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from moe_hw.errors import UnsupportedLayer
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec, blocks
from tests.moe_hw.layers import SPECS


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (31, 1), (32, 1), (33, 2), (2048, 64)])
def test_blocks(size: int, count: int) -> None:
    assert blocks(size) == count


def test_sizes_of_an_odd_layer() -> None:
    spec = SPECS["odd"]
    assert (spec.hidden_blocks, spec.inter_blocks, spec.shared_blocks, spec.router_rows) == (2, 2, 1, 6)


def test_a_shared_expert_of_weight_one_has_no_router_row() -> None:
    spec = SPECS["twos"]
    assert not spec.shared_gate and spec.router_rows == 2 and spec.shared_blocks == 1


@pytest.mark.parametrize("name", SPECS)
def test_json_round_trip(name: str) -> None:
    assert LayerSpec.from_dict(json.loads(json.dumps(SPECS[name].as_dict()))) == SPECS[name]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RouterSpec(0, 1), "router.experts: expected 1 to 1023, got 0"),
        (lambda: RouterSpec(4, 5), "router.top_k: expected 1 to 4, got 5"),
        (lambda: RouterSpec(4, True), "router.top_k: expected 1 to 4, got True"),
        (lambda: RouterSpec(4, 2, score="sigmoid"), "router.score: expected softmax, got sigmoid"),
        (lambda: ExpertSpec(8, activation="gelu"), "expert.activation: expected silu, got gelu"),
        (lambda: ExpertSpec(8, gated=False), "expert.gated: expected True, got False"),
        (lambda: ExpertSpec(1.5), "expert.intermediate: expected 1 to 32736, got 1.5"),
        (lambda: SharedSpec(0, True), "shared.intermediate: expected 1 to 32736, got 0"),
        (lambda: LayerSpec(32737, RouterSpec(2, 1), ExpertSpec(8)), "hidden: expected 1 to 32736, got 32737"),
    ],
)
def test_refusals_name_the_axis_and_the_value(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UnsupportedLayer, match=f"^{message}; this version cannot run the layer$"):
        make()
