"""Keys of logits and the terms of their scores against the router's twin."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ACC_BITS, Arch
from moe_hw.twins import router as twin
from rtl_gen.keys import LATENCY, Keys, term_layout
from rtl_gen.score import Function
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


async def check(dut: Any, score: int, correction: int, shift: int, exponent: int, idle: float = 0) -> None:
    rules = twin.Rules(EXPERTS, 1, score, correction=correction, correction_shift=shift)
    dut.layer.value = pack(layer_layout(), {"correction": correction, "correction_shift": shift})
    dut.shift.value = min(127, max(0, 12 - exponent))
    bits = random.choice([1, 28, 32])
    table = [random.getrandbits(bits) - (1 << bits - 1) for _ in range(EXPERTS)]
    width = random.choice([1, 30, 48])
    logits = [random.getrandbits(width) - (1 << width - 1) for _ in range(EXPERTS)]
    peak, lse = max(logits), random.getrandbits(31)
    scores = twin.scores(np.array([logits]), np.array([[exponent]]), rules, np.array([[peak]]), lse)
    keys = twin.keys(np.array([logits]), np.array([[exponent]]), rules, scores, np.array(table))[0].tolist()
    mantissas, halvings = (part[0].tolist() for part in twin.terms(scores))
    dut.function.value, dut.peak.value, dut.lse.value = score, peak, lse
    reading = cocotb.start_soon(serve_corrections(dut, table))
    waiting = deque(range(EXPERTS))
    expected: deque[int | None] = deque([None] * LATENCY)
    while waiting or any(row is not None for row in expected):
        row = waiting.popleft() if waiting and random.random() >= idle else None
        dut.valid.value = int(row is not None)
        if row is not None:
            dut.row.value, dut.logit.value, dut.last.value = row, logits[row], int(row == EXPERTS - 1)
            dut.choice.value = row % 2
        expected.append(row)
        await ReadOnly()
        want = expected.popleft()
        assert int(dut.o_valid.value) == (want is not None)
        if want is not None:
            marks = int(dut.o_row.value), int(dut.o_last.value), int(dut.o_choice.value)
            assert marks == (want, want == EXPERTS - 1, want % 2)
            assert unpack_signed(int(dut.o_key.value), ACC_BITS) == keys[want]
            term = unpack(term_layout(), int(dut.o_term.value))
            assert term == {"mantissa": mantissas[want], "halvings": halvings[want], "score": scores[0, want]}
        await RisingEdge(dut.clk)
    dut.valid.value = 0
    reading.cancel()


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(score=[0, 1, 2], correction=[0, 1, 2], idle=[0, 0.5])
async def random_logits(dut: Any, score: int, correction: int, idle: float) -> None:
    if score == Function.EXPONENTIAL.value and correction == 2:
        return  # there is no such rule
    await begin(dut)
    for shift in (0, 1, 14):
        await check(dut, score, correction, shift, random.randint(-50, -10), idle)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    dut.valid.value = 1
    await ClockCycles(dut.clk, 5)
    dut.valid.value = 0
    await reset(dut)
    await check(dut, 1, 1, 0, -30)
