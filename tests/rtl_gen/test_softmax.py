"""Peaks and logarithms of sums against the router's twin; the bench is the logarithm unit."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ACC_BITS, Arch
from moe_hw.tables import LOGARITHM
from moe_hw.twins import router as twin
from rtl_gen.softmax import Softmax
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import reset, start, unpack_signed

ARCHES = {"two": Arch(max_experts=2, max_top_k=1), "most": Arch(max_experts=512, max_top_k=16)}


@pytest.mark.parametrize("arch", list(ARCHES))
def test_softmax(arch: str) -> None:
    run_bench(Softmax(ARCHES[arch]), __name__, arch=arch)


async def begin(dut: Any) -> None:
    dut.start.value = dut.logit_valid.value = dut.sum.value = dut.term_valid.value = 0
    dut.finish.value = dut.answered.value = 0
    await start(dut)


async def pulse(dut: Any, name: str) -> None:
    getattr(dut, name).value = 1
    await RisingEdge(dut.clk)
    getattr(dut, name).value = 0


async def check(dut: Any, logits: list[int], exponent: int, idle: float = 0) -> None:
    await pulse(dut, "start")
    for logit in logits:
        await ClockCycles(dut.clk, int(random.random() < idle))
        dut.logit.value = logit
        await pulse(dut, "logit_valid")
    await pulse(dut, "sum")
    await ReadOnly()
    assert unpack_signed(int(dut.peak.value), ACC_BITS) == max(logits) and int(dut.lse.value) == 0
    await RisingEdge(dut.clk)
    terms = twin.exponential(max(logits) - np.array([logits]), exponent)
    for term in random.sample(terms[0].tolist(), len(logits)):
        await ClockCycles(dut.clk, int(random.random() < idle))
        dut.term.value = term
        await pulse(dut, "term_valid")
    await pulse(dut, "finish")
    await answer(dut)
    assert int(dut.lse.value) == int(twin.log_sum(terms)[0, 0])


async def answer(dut: Any) -> None:
    """Wait for the question, answer it some cycles later, and wait until the result is there."""
    for _ in range(13):
        await ReadOnly()
        assert int(dut.busy.value)
        if int(dut.asking.value):
            break
        await RisingEdge(dut.clk)
    else:
        raise AssertionError("no question after 13 cycles")
    fraction = int(dut.fraction.value)
    for _ in range(random.randint(1, 20)):
        await RisingEdge(dut.clk)
        await ReadOnly()
        assert int(dut.busy.value) and not int(dut.asking.value)
    await RisingEdge(dut.clk)
    dut.term.value = int(twin.curve(LOGARITHM, fraction >> 2))
    dut.answered.value = 1
    await RisingEdge(dut.clk)
    dut.answered.value = 0
    await ReadOnly()
    assert int(dut.done.value) and not int(dut.busy.value)
    await RisingEdge(dut.clk)
    await ReadOnly()
    assert not int(dut.done.value)
    await RisingEdge(dut.clk)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(idle=[0, 0.5])
async def random_tokens(dut: Any, idle: float) -> None:
    await begin(dut)
    most = ARCHES[parameter("arch")].max_experts
    for count in (1, 2, most, *(random.randint(1, most) for _ in range(8))):
        width = random.choice([1, 20, 36, 48])
        logits = [random.getrandbits(width) - (1 << width - 1) for _ in range(count)]
        await check(dut, logits, random.choice([-60, -47, -33, -20]), idle)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_largest_and_the_smallest_sum(dut: Any) -> None:
    await begin(dut)
    most = ARCHES[parameter("arch")].max_experts
    await check(dut, [-(1 << ACC_BITS - 1)] * most, 0)
    await check(dut, [(1 << ACC_BITS - 1) - 1], 0)
    await check(dut, [(1 << ACC_BITS - 1) - 1] + [-(1 << ACC_BITS - 1)] * (most - 1), 0)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    for _ in range(8):
        dut.term.value = 1 << 30
        for _ in range(2):
            await pulse(dut, "term_valid")
        await pulse(dut, "finish")
        await ClockCycles(dut.clk, random.randrange(6))
        await reset(dut)
        await check(dut, [1, 2], -30)
