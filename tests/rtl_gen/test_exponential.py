"""exp of accumulator differences against the router's twin."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ACC_BITS
from moe_hw.twins import router as twin
from rtl_gen.exponential import LATENCY, Exponential, exponential_layout
from sim.bench.runner import run_bench
from sim.bench.streams import reset, start, unpack

LARGEST = (1 << ACC_BITS - 1) - 1


def test_exponential() -> None:
    run_bench(Exponential(), __name__)


def random_pair(distance: int) -> tuple[int, int]:
    """A larger and a smaller accumulator, so far apart."""
    smaller = random.randint(-LARGEST - 1, LARGEST - distance)
    return smaller + distance, smaller


async def check(dut: Any, pairs: list[tuple[int, int]], exponent: int, idle: float = 0) -> None:
    """The exponentials of ``pairs`` of accumulators at ``exponent``, each ``LATENCY`` cycles after its difference."""
    dut.shift.value = min(127, max(0, 6 - exponent))
    waiting = deque(pairs)
    expected: deque[tuple[int, int, int, int] | None] = deque([None] * LATENCY)
    while waiting or any(expected):
        pair = waiting.popleft() if waiting and random.random() >= idle else None
        mark = random.randrange(2)
        dut.valid.value, dut.last.value = int(pair is not None), mark
        if pair is None:
            expected.append(None)
        else:
            dut.minuend.value, dut.subtrahend.value = pair
            mantissa, halvings = (int(part) for part in twin.exponential(pair[0] - pair[1], exponent))
            expected.append((mark, mantissa, halvings, int(twin.fraction(mantissa, halvings))))
        await ReadOnly()
        want = expected.popleft()
        assert int(dut.o_valid.value) == (want is not None)
        if want is not None:
            o = unpack(exponential_layout(), int(dut.o.value))
            assert (int(dut.o_last.value), o["mantissa"], o["halvings"], o["fraction"]) == want
        await RisingEdge(dut.clk)
    dut.valid.value = 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=[0, 0.5])
async def every_piece_of_the_table(dut: Any, idle: float) -> None:
    """Distances over the whole range of the argument, at every position within a piece."""
    dut.valid.value = 0
    await start(dut)
    distances = [(piece << 26) // 2000 + random.getrandbits(15) for piece in range(2001)]
    await check(dut, [random_pair(distance) for distance in distances], -20, idle)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def every_shift(dut: Any) -> None:
    """Distances of 0 to 48 bits at exponents where they vanish, where they saturate, and all between."""
    dut.valid.value = 0
    await start(dut)
    for exponent in [-2048, *range(-130, 12), 2047]:
        distances = [0, 1, LARGEST, 2 * LARGEST + 1, *(random.getrandbits(bits) for bits in range(1, ACC_BITS, 5))]
        await check(dut, [random_pair(min(d, 2 * LARGEST + 1)) for d in distances], exponent)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    dut.valid.value = 0
    await start(dut)
    dut.valid.value = 1
    await ClockCycles(dut.clk, LATENCY + 3)
    dut.valid.value = 0
    await reset(dut, 1)
    for _ in range(LATENCY + 1):
        await ReadOnly()
        assert int(dut.o_valid.value) == 0
        await RisingEdge(dut.clk)
    await check(dut, [random_pair(0)], 0)
