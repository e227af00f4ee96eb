"""Sigmoids of accumulators against the router's twin."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ACC_BITS, Arch
from moe_hw.tables import SIGMOID_BENDS, SIGMOID_SLOPES, SIGMOID_VALUES
from moe_hw.twins import router as twin
from rtl_gen.sigmoid import LATENCY, Sigmoid, piece_layout
from sim.bench.runner import run_bench
from sim.bench.streams import reset, start, unpack_signed

LARGEST = (1 << ACC_BITS - 1) - 1


def test_sigmoid() -> None:
    run_bench(Sigmoid(Arch()), __name__)


def test_the_table_fits_its_layout() -> None:
    for name, values in (("value", SIGMOID_VALUES), ("slope", SIGMOID_SLOPES), ("bend", SIGMOID_BENDS)):
        assert values.min() >= 0 and int(values.max()) < 1 << piece_layout()[name].width


async def check(dut: Any, logits: list[int], exponent: int, idle: float = 0) -> None:
    """The sigmoids of ``logits`` at ``exponent``, each ``LATENCY`` cycles after its logit."""
    dut.shift.value = min(127, max(0, 12 - exponent))
    waiting = deque(logits)
    expected: deque[tuple[int, ...] | None] = deque([None] * LATENCY)
    while waiting or any(expected):
        logit = waiting.popleft() if waiting and random.random() >= idle else None
        mark, row = random.randrange(2), random.randrange(256)
        dut.valid.value, dut.last.value, dut.row.value = int(logit is not None), mark, row
        if logit is None:
            expected.append(None)
        else:
            dut.logit.value = logit
            z = int(twin.fixed(logit, exponent))
            expected.append((mark, row, logit, z, int(twin.sigmoid(z))))
        await ReadOnly()
        want = expected.popleft()
        assert int(dut.o_valid.value) == (want is not None)
        if want is not None:
            logit, z = unpack_signed(int(dut.o_logit.value), ACC_BITS), unpack_signed(int(dut.o_fixed.value), 41)
            assert (int(dut.o_last.value), int(dut.o_row.value), logit, z, int(dut.o_sigmoid.value)) == want
        await RisingEdge(dut.clk)
    dut.valid.value = 0


async def begin(dut: Any) -> None:
    dut.valid.value = 0
    await start(dut)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=[0, 0.5])
async def every_piece_of_the_table(dut: Any, idle: float) -> None:
    """Both signs, and every position within a piece; beyond the last piece, too."""
    await begin(dut)
    logits = [(piece << 22) + random.getrandbits(22) for piece in range(26 << 6)]
    await check(dut, [random.choice([-1, 1]) * logit for logit in logits], -28, idle)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def ends_of_pieces(dut: Any) -> None:
    await begin(dut)
    logits = [(piece << 22) + offset for piece in range(26 << 6) for offset in (-1, 0)]
    await check(dut, logits, -28)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def every_shift(dut: Any) -> None:
    """Logits of 0 to 48 bits at exponents where they vanish, where they saturate, and all between."""
    await begin(dut)
    for exponent in [-2048, *range(-130, 16), 2047]:
        magnitudes = [0, 1, LARGEST, LARGEST + 1, *(random.getrandbits(bits) for bits in range(1, ACC_BITS, 5))]
        logits = [random.choice([-1, 1]) * magnitude for magnitude in magnitudes]
        await check(dut, [min(LARGEST, logit) for logit in logits], exponent)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    dut.valid.value = 1
    await ClockCycles(dut.clk, 5)
    dut.valid.value = 0
    await reset(dut)
    await check(dut, [1, -1, 0], -20)
