"""Weights of random terms against the router's twin."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, RisingEdge

from moe_hw.arch import Arch
from moe_hw.registers import ONE
from moe_hw.twins import router as twin
from rtl_gen.exponential import exponential_layout
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


def random_term() -> tuple[int, int]:
    """(y, n) of an exponential: one, a likely one or one that vanishes in the sum."""
    return random.choice([(1 << 17, 0), (random.randint(1 << 16, 1 << 17), random.randrange(8)),
                          (random.randint(1 << 16, 1 << 17), random.randrange(93))])  # fmt: skip


def fraction(term: tuple[int, int]) -> int:
    return int(twin.fraction(*term))


async def add_up(dut: Any, terms: list[tuple[int, int]], idle: str) -> None:
    """Offer the terms of a sum; the first is exp(0), or the sum is not a number."""
    active = PATTERNS[idle]()
    dut.start.value = 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    for number, term in enumerate(terms):
        while not next(active):
            await RisingEdge(dut.clk)
        value = {"mantissa": term[0], "halvings": term[1], "fraction": fraction(term)}
        dut.term.value, dut.valid.value = pack(exponential_layout(), value), 1
        dut.last.value = int(number == len(terms) - 1)
        await RisingEdge(dut.clk)
        dut.valid.value = 0


async def check(dut: Any, count: int, others: int, idle: str = "always", pressure: str = "always") -> None:
    """``count`` numerators; with ``others`` the terms follow them: the same again and that many more."""
    numerators = [(1 << 17, 0), *(random_term() for _ in range(count - 1))]
    terms = [*numerators, *(random_term() for _ in range(others))] if others else []
    random.shuffle(terms)
    dut.count.value, dut.terms_follow.value = count, int(others > 0)
    initial = random.choice([0, 1, random.getrandbits(32)])
    dut.initial.value, dut.certain.value = initial, 0
    total = initial + sum(map(fraction, terms or numerators))
    scale = random.choice([ONE, (random.randint(-64, 63) & 0xFFF) << 16 | 1 << 15 | random.getrandbits(15)])
    set_scale(dut, scale)
    cocotb.start_soon(add_up(dut, numerators + terms, idle))
    await compare(dut, numerators, total, pressure, scale)
    set_scale(dut)


async def compare(dut: Any, numerators: list[tuple[int, int]], total: int, pressure: str, scale: int = ONE) -> None:
    weights = await receive(dut, "weights", weight_layout(), len(numerators), PATTERNS[pressure])
    for weight, (y, n) in zip(weights, numerators, strict=True):
        assert (weight["mantissa"], weight["exponent"]) == tuple(int(part) for part in twin.divide(y, n, total, scale))


def set_scale(dut: Any, scale: int = ONE) -> None:
    dut.scale_mantissa.value, dut.scale_exponent.value = scale & 0xFFFF, scale >> 16


async def begin(dut: Any) -> None:
    dut.start.value = dut.valid.value = dut.weights__ready.value = 0
    set_scale(dut)
    await start(dut)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS), pressure=list(PATTERNS))
async def random_sums(dut: Any, idle: str, pressure: str) -> None:
    await begin(dut)
    arch = bench_arch()
    for _ in range(10):
        count = random.choice([1, arch.max_top_k, random.randint(1, arch.max_top_k)])
        await check(dut, count, random.choice([0, random.randint(1, arch.max_experts - count)]), idle, pressure)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_largest_sum(dut: Any) -> None:
    await begin(dut)
    arch = bench_arch()
    terms = [(1 << 17, 0)] * arch.max_experts
    dut.count.value, dut.terms_follow.value, dut.initial.value = arch.max_top_k, 1, 0
    dut.certain.value = 0
    cocotb.start_soon(add_up(dut, terms[: arch.max_top_k] + terms, "always"))
    await compare(dut, terms[: arch.max_top_k], len(terms) << 31, "always")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def sigmoids(dut: Any) -> None:
    """One numerator and exp(0) in the sum, for a shared expert's gate."""
    await begin(dut)
    dut.count.value, dut.terms_follow.value, dut.initial.value = 1, 0, 1 << 31
    for number in range(200):
        dut.certain.value = number % 2
        term = random_term()
        cocotb.start_soon(add_up(dut, [term], "always"))
        await compare(dut, [(1 << 17, 0) if number % 2 else term], (1 << 31) + fraction(term), "sometimes")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def cycles(dut: Any) -> None:
    """The latencies that the docstring promises."""
    await begin(dut)
    arch = bench_arch()
    numerators = [(1 << 17, 0), *((1 << 16, 91) for _ in range(arch.max_top_k - 1))]
    dut.count.value, dut.terms_follow.value, dut.initial.value = arch.max_top_k, 0, 0
    dut.certain.value = 0
    await add_up(dut, numerators, "always")
    for number in range(arch.max_top_k):
        task = cocotb.start_soon(receive(dut, "weights", weight_layout(), 1))
        cycles = 0
        while not task.done():
            await RisingEdge(dut.clk)
            cycles += 1
        assert cycles <= (8 if number else 37), f"weight {number}: {cycles} cycles"


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def numerators_that_are_not_in_the_sum(dut: Any) -> None:
    """Shares of one, and of the smallest sums; numerators of 0."""
    await begin(dut)
    count = bench_arch().max_top_k
    for number in range(40):
        numerators = [random.choice([(0, 29), (1 << 17, random.randrange(29)), random_term()]) for _ in range(count)]
        initial = 1 << 31 if number % 2 else random.randint(1, 40)
        dut.count.value, dut.terms_follow.value, dut.certain.value, dut.initial.value = count, number % 2, 0, initial
        cocotb.start_soon(add_up(dut, numerators, "always"))
        total = initial + (0 if number % 2 else sum(map(fraction, numerators)))
        await compare(dut, numerators, total, "sometimes")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    dut.certain.value = 0
    for _ in range(8):
        dut.count.value, dut.terms_follow.value, dut.initial.value = 1, 0, 0
        await add_up(dut, [(1 << 17, 0)], "always")
        await ClockCycles(dut.clk, random.randint(0, 90))
        await reset(dut)
        await check(dut, 1, 1)
