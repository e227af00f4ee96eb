"""The cycle model: its sums, its limits, and its distance from the simulated RTL."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from boards import load_board
from moe_hw.estimate import Estimate, estimate
from moe_hw.fit import arch_of
from moe_hw.formats import FORMATS
from moe_hw.limits import Footprint
from moe_hw.presets import PRESETS
from moe_hw.spec import ExpertSpec, GroupSpec, LayerSpec, RouterSpec, SharedSpec
from sim.dram import ideal_reader
from tests.moe_hw.simulated import simulated_figures

BOARD = load_board("kv260")
ARCH = arch_of(BOARD)
INT4, INT8 = FORMATS["int4"], FORMATS["int8"]


def choices(tokens: int, spec: LayerSpec) -> np.ndarray:
    """Experts in turn."""
    return np.arange(tokens * spec.router.top_k).reshape(tokens, -1) % spec.router.experts


def test_estimates_add_up_and_multiply() -> None:
    spec = PRESETS["olmoe-1b-7b"].spec
    one = estimate(spec, BOARD, ARCH, INT4, choices(1, spec))
    assert sum(one.phases.values()) == pytest.approx(sum(one.resources.values()))
    assert (one + one + one).cycles == (one * 3).cycles == pytest.approx(3 * one.cycles, abs=3)
    assert (Estimate() + one).phases == one.phases
    # What does not fit a command runs in several.
    limit = Footprint(spec, ARCH, INT4.bits).max_tokens()
    experts = choices(limit + 1, spec)
    parts = [estimate(spec, BOARD, ARCH, INT4, part) for part in (experts[:limit], experts[limit:])]
    assert estimate(spec, BOARD, ARCH, INT4, experts) == parts[0] + parts[1]


@pytest.mark.parametrize("board", ["kv260", "ulx3s-85f"])
def test_memory_bound_layers_take_as_long_as_the_ideal_reader(board: str) -> None:
    loaded, spec = load_board(board), PRESETS["granite-1b-a400m"].spec
    arch = arch_of(loaded)
    found = estimate(spec, loaded, arch, INT4, choices(1, spec))
    ideal = ideal_reader(loaded, Footprint(spec, arch, 4).weight_bytes(range(spec.router.top_k)))
    assert found.limit == "memory"
    assert ideal < found.cycles < 1.03 * ideal


def test_many_tokens_of_an_expert_are_bound_by_the_multipliers() -> None:
    spec = LayerSpec(1024, RouterSpec(2, 1), ExpertSpec(2048))
    found = estimate(spec, BOARD, ARCH, INT8, np.zeros((32, 1), np.int64))
    least = Footprint(spec, ARCH, INT8.bits).array_cycles(32, [0] * 32)
    assert found.limit == "multipliers"
    assert least <= found.resources["multipliers"] < 1.01 * least
    faster = dataclasses.replace(BOARD, memory=dataclasses.replace(BOARD.memory, mt_per_s=9600))
    assert estimate(spec, faster, ARCH, INT8, np.zeros((32, 1), np.int64)).cycles > 0.95 * found.cycles


@pytest.mark.parametrize("weight_format", ["int4", "int8"])
@pytest.mark.parametrize("tokens", [1, 5, 16])
@pytest.mark.parametrize(
    "spec",
    [
        LayerSpec(64, RouterSpec(64, 8, normalise=False), ExpertSpec(64), SharedSpec(64, gated=False)),
        LayerSpec(96, RouterSpec(8, 2), ExpertSpec(160), SharedSpec(224, gated=True)),
        LayerSpec(96, RouterSpec(64, 8, "sigmoid", correction="score", groups=GroupSpec(8, 4)), ExpertSpec(96)),
    ],
    ids=["many experts", "gated shared", "groups"],
)
def test_within_three_percent_of_the_rtl(spec: LayerSpec, tokens: int, weight_format: str) -> None:
    figures = simulated_figures(spec, weight_format, tokens)
    assert figures["bit_exact"]
    assert abs(figures["estimate_deviation"]) <= 0.03, figures
    assert sum(figures["stalls"].values()) == figures["cycles"]
