"""Weights of random scores against the router's twin."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, RisingEdge

from moe_hw.arch import Arch
from moe_hw.registers import ONE
from moe_hw.twins import router as twin
from moe_hw.twins.router import UNIT
from rtl_gen.keys import term_layout
from rtl_gen.score import SCORE_BITS
from rtl_gen.types import weight_layout
from rtl_gen.weigh import Weigh
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, pack, receive, reset, start

ARCHES = {"one": Arch(max_experts=2, max_top_k=1), "wide": Arch(max_experts=512, max_top_k=16)}


@pytest.mark.parametrize("arch", list(ARCHES))
def test_weigh(arch: str) -> None:
    run_bench(Weigh(ARCHES[arch]), __name__, arch=arch)


def bench_arch() -> Arch:
    return ARCHES[parameter("arch")]


def random_score() -> int:
    """One, a likely score, the largest, or one that vanishes in the sum."""
    return random.choice([UNIT, random.getrandbits(30), random.getrandbits(random.randint(1, SCORE_BITS)), 0])


async def add_up(dut: Any, scores: list[int], idle: str) -> None:
    """Offer the terms of a token."""
    active = PATTERNS[idle]()
    dut.start.value = 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    for q in scores:
        while not next(active):
            await RisingEdge(dut.clk)
        mantissa, halvings = (int(part) for part in twin.terms(q))
        dut.term.value = pack(term_layout(), {"mantissa": mantissa, "halvings": halvings, "score": q})
        dut.valid.value = 1
        await RisingEdge(dut.clk)
        dut.valid.value = 0


async def check(
    dut: Any,
    scores: list[int],
    *,
    normalise: bool = True,
    gate: int | None = None,
    epsilon: int = 1,
    scale: int = ONE,
    idle: str = "always",
    pressure: str = "always",
) -> None:
    """The weights of a token's scores, and of a gate's if there is one."""
    dut.count.value, dut.gate.value, dut.normalise.value = len(scores), int(gate is not None), int(normalise)
    dut.epsilon.value = epsilon
    dut.scale_mantissa.value, dut.scale_exponent.value = scale & 0xFFFF, scale >> 16
    gates = [] if gate is None else [gate]
    cocotb.start_soon(add_up(dut, scores + gates, idle))
    total = epsilon + sum(scores) if normalise else UNIT
    expected = [twin.divide(*twin.terms(q), total, scale) for q in scores]
    expected += [twin.divide(*twin.terms(q), UNIT) for q in gates]
    weights = await receive(dut, "weights", weight_layout(), len(expected), PATTERNS[pressure])
    for weight, want in zip(weights, expected, strict=True):
        assert (weight["mantissa"], weight["exponent"]) == tuple(int(part) for part in want)


async def begin(dut: Any) -> None:
    dut.start.value = dut.valid.value = dut.weights__ready.value = 0
    await start(dut)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS), pressure=list(PATTERNS))
async def random_tokens(dut: Any, idle: str, pressure: str) -> None:
    await begin(dut)
    most = bench_arch().max_top_k
    for _ in range(12):
        scores = [random_score() for _ in range(random.choice([1, most, random.randint(1, most)]))]
        await check(
            dut,
            scores,
            normalise=random.random() < 0.7,
            gate=random.choice([None, min(UNIT, random_score())]),
            epsilon=random.choice([1, random.randint(1, (1 << 32) - 1)]),
            scale=random.choice([ONE, (random.randint(-64, 63) & 0xFFF) << 16 | 1 << 15 | random.getrandbits(15)]),
            idle=idle,
            pressure=pressure,
        )


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_largest_and_the_smallest_sum(dut: Any) -> None:
    await begin(dut)
    most = bench_arch().max_top_k
    await check(dut, [(1 << SCORE_BITS) - 1] * most, epsilon=(1 << 32) - 1, gate=UNIT)
    await check(dut, [0] * most)
    await check(dut, [0] * (most - 1) + [1], gate=0)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def gates_are_not_divided(dut: Any) -> None:
    await begin(dut)
    for _ in range(100):
        await check(dut, [random_score()], gate=random.choice([0, UNIT, random.getrandbits(30)]), pressure="sometimes")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def cycles(dut: Any) -> None:
    """The latencies that the docstring promises."""
    await begin(dut)
    most = bench_arch().max_top_k
    dut.count.value, dut.gate.value, dut.normalise.value, dut.epsilon.value = most, 0, 0, 0
    dut.scale_mantissa.value, dut.scale_exponent.value = ONE & 0xFFFF, ONE >> 16
    await add_up(dut, [UNIT, *(random.randint(1, UNIT) for _ in range(most - 1))], "always")
    for number in range(most):
        task = cocotb.start_soon(receive(dut, "weights", weight_layout(), 1))
        cycles = 0
        while not task.done():
            await RisingEdge(dut.clk)
            cycles += 1
        assert cycles <= (9 if number else 38), f"weight {number}: {cycles} cycles"


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    dut.gate.value = 0
    for _ in range(8):
        dut.count.value, dut.normalise.value, dut.epsilon.value = 1, 1, 1
        await add_up(dut, [UNIT], "always")
        await ClockCycles(dut.clk, random.randint(0, 90))
        await reset(dut)
        await check(dut, [UNIT, UNIT][: bench_arch().max_top_k])
