"""Specs: what they derive, what they refuse and how they say so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from moe_hw.errors import UnsupportedLayer
from moe_hw.spec import ExpertSpec, GroupSpec, LayerSpec, RouterSpec, SharedSpec, blocks
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
        (
            lambda: RouterSpec(4, 2, score="entmax"),
            "router.score: expected softmax or sigmoid or sqrtsoftplus or given, got entmax",
        ),
        (lambda: RouterSpec(4, 2, "given", correction="score"), "router.correction: expected None, got score"),
        (lambda: RouterSpec(4, 2, correction="logit"), "router.correction: expected None or score, got logit"),
        (lambda: RouterSpec(4, 2, epsilon=1.5), "router.epsilon: expected 0 to 1, got 1.5"),
        (lambda: RouterSpec(4, 2, "given", epsilon=1e-6), "router.epsilon: expected 0 to 0, got 1e-06"),
        (lambda: RouterSpec(4, 2, scale=0.0), "router.scale: expected 1/1024 to 1024, got 0.0"),
        (lambda: RouterSpec(4, 2, "given", scale=2.0), "router.scale: expected 1/1 to 1, got 2.0"),
        (lambda: RouterSpec(4, 2, groups=GroupSpec(3, 1)), "router.groups.count: expected a divisor of 4, got 3"),
        (
            lambda: RouterSpec(4, 2, "sigmoid", correction="logit", groups=GroupSpec(2, 1, zero=True)),
            "router.groups.zero: expected False, got True",
        ),
        (
            lambda: RouterSpec(4, 2, "sigmoid", correction="score", groups=GroupSpec(4, 2)),
            "router.groups.count: expected 1 to 2, got 4",
        ),
        (lambda: RouterSpec(4, 3, groups=GroupSpec(2, 1, "largest")), "router.top_k: expected 1 to 2, got 3"),
        (lambda: GroupSpec(33, 1), "router.groups.count: expected 1 to 32, got 33"),
        (lambda: GroupSpec(4, 5), "router.groups.kept: expected 1 to 4, got 5"),
        (lambda: GroupSpec(4, 1, "mean"), "router.groups.score: expected largest or two, got mean"),
        (lambda: RouterSpec(4, 2, score="given", bias=True), "router.bias: expected False, got True"),
        (
            lambda: ExpertSpec(8, activation="relu2"),
            "expert.activation: expected silu or gelu_tanh or gelu or quick_gelu or relu, got relu2",
        ),
        (lambda: ExpertSpec(8, gated=2), "expert.gated: expected True or False, got 2"),
        (lambda: ExpertSpec(8, limit=0.0), "expert.limit: expected None or a number from 2^-20 to 2^20, got 0.0"),
        (lambda: ExpertSpec(8, up_offset=1.0, limit=0.5), "expert.up_offset: expected one below the limit, got 1.0"),
        (lambda: ExpertSpec(8, gated=False, up_offset=1), "expert.up_offset: expected 0 for two-layer experts, got 1"),
        (lambda: ExpertSpec(8, up_softcap=0), "expert.up_softcap: expected None or a number from 2^-20 to 2^20, got 0"),
        (
            lambda: ExpertSpec(8, gated=False, gate_softcap=4.0),
            "expert.gated of experts with softcaps: expected True, got False",
        ),
        (
            lambda: ExpertSpec(8, bias=True, gate_softcap=4.0),
            "expert.bias of experts with softcaps: expected False, got True",
        ),
        (
            lambda: ExpertSpec(8, limit=1.0, up_softcap=4.0),
            "expert.limit of experts with softcaps: expected None, got 1.0",
        ),
        (
            lambda: ExpertSpec(8, up_offset=1.0, up_softcap=4.0),
            "expert.up_offset of experts with softcaps: expected 0, got 1.0",
        ),
        (
            lambda: LayerSpec(8, RouterSpec(2, 1), ExpertSpec(8, up_softcap=4.0), SharedSpec(8, False, limit=1.0)),
            "shared.limit of experts with softcaps: expected None, got 1.0",
        ),
        (lambda: ExpertSpec(8, clamp="within"), "expert.clamp: expected before or after, got within"),
        (lambda: ExpertSpec(1.5), "expert.intermediate: expected 1 to 32736, got 1.5"),
        (lambda: SharedSpec(0, True), "shared.intermediate: expected 1 to 32736, got 0"),
        (
            lambda: LayerSpec(8, RouterSpec(2, 1), ExpertSpec(8, up_offset=1.0), SharedSpec(8, False, limit=0.5)),
            "shared.limit: expected one above up's offset 1.0, got 0.5",
        ),
        (lambda: LayerSpec(32705, RouterSpec(2, 1), ExpertSpec(8)), "hidden: expected 1 to 32704, got 32705"),
    ],
)
def test_refusals_name_the_axis_and_the_value(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UnsupportedLayer, match=f"^{re.escape(message)}; this version cannot run the layer$"):
        make()
