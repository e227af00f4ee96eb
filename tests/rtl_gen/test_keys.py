"""Keys of logits and the terms of their sigmoids against the router's twin."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ACC_BITS, Arch
from moe_hw.twins import router as twin
from moe_hw.twins.arith import bit_length
from rtl_gen.exponential import exponential_layout
from rtl_gen.keys import LATENCY, Keys
from rtl_gen.types import layer_layout
from sim.bench.memory import serve_corrections
from sim.bench.runner import run_bench
from sim.bench.streams import pack, reset, start, unpack, unpack_signed

EXPERTS = 256


def test_keys() -> None:
    run_bench(Keys(Arch()), __name__)


async def begin(dut: Any) -> None:
    dut.valid.value = 0
    await start(dut)


async def check(dut: Any, correction: int, shift: int, exponent: int, idle: float = 0) -> None:
    rules = twin.Rules(EXPERTS, 1, sigmoid=1, correction=correction, correction_shift=shift)
    dut.layer.value = pack(layer_layout(), {"correction": correction, "correction_shift": shift})
    dut.shift.value = min(127, max(0, 12 - exponent))
    bits = random.choice([1, 28, 32])
    table = [random.getrandbits(bits) - (1 << bits - 1) for _ in range(EXPERTS)]
    width = random.choice([1, 30, 48])
    logits = [random.getrandbits(width) - (1 << width - 1) for _ in range(EXPERTS)]
    keys = twin.keys(np.array([logits]), np.array([[exponent]]), rules, np.array(table))[0].tolist()
    sigmoids = twin.sigmoid(twin.fixed(logits, exponent))
    halvings = 29 - bit_length(sigmoids)
    mantissas = (sigmoids << halvings) >> 11
    reading = cocotb.start_soon(serve_corrections(dut, table))
    waiting = deque(range(EXPERTS))
    expected: deque[int | None] = deque([None] * LATENCY)
    while waiting or any(row is not None for row in expected):
        row = waiting.popleft() if waiting and random.random() >= idle else None
        dut.valid.value = int(row is not None)
        if row is not None:
            dut.row.value, dut.logit.value, dut.last.value = row, logits[row], int(row == EXPERTS - 1)
        expected.append(row)
        await ReadOnly()
        want = expected.popleft()
        assert int(dut.o_valid.value) == (want is not None)
        if want is not None:
            assert (int(dut.o_row.value), int(dut.o_last.value)) == (want, want == EXPERTS - 1)
            assert unpack_signed(int(dut.o_key.value), ACC_BITS) == keys[want]
            term = unpack(exponential_layout(), int(dut.o_term.value))
            assert (term["mantissa"], term["halvings"]) == (mantissas[want], halvings[want])
            assert term["fraction"] == 8 * sigmoids[want]
        await RisingEdge(dut.clk)
    dut.valid.value = 0
    reading.cancel()


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(correction=[0, 1, 2], idle=[0, 0.5])
async def random_logits(dut: Any, correction: int, idle: float) -> None:
    await begin(dut)
    for shift in (0, 1, 14):
        await check(dut, correction, shift, random.randint(-50, -10), idle)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    dut.valid.value = 1
    await ClockCycles(dut.clk, 5)
    dut.valid.value = 0
    await reset(dut)
    await check(dut, 1, 0, -30)
