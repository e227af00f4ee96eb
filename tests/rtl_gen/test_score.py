"""Functions of accumulators against the router's twin."""

from __future__ import annotations

import random
from collections import deque
from typing import Any, NamedTuple

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ACC_BITS, Arch
from moe_hw.spec import SCORES
from moe_hw.tables import CURVE_BENDS, CURVE_FINE, CURVE_SLOPES, CURVE_VALUES, LOGARITHM
from moe_hw.twins import router as twin
from rtl_gen.score import LATENCY, SCORE_BITS, Function, Score, piece_layout
from sim.bench.runner import run_bench
from sim.bench.streams import reset, start, unpack_signed

LARGEST = (1 << ACC_BITS - 1) - 1


def test_score() -> None:
    run_bench(Score(Arch()), __name__)


def test_functions_have_the_numbers_of_scores() -> None:
    names = {Function.EXPONENTIAL: "softmax", Function.SIGMOID: "sigmoid", Function.ROOT: "sqrtsoftplus"}
    assert [names[Function(number)] for number in range(3)] == list(SCORES[:3])


def test_the_table_fits_its_layout() -> None:
    columns = {"value": CURVE_VALUES, "slope": CURVE_SLOPES, "fine": CURVE_FINE}
    for name, values in columns.items():
        assert values.min() >= 0 and int(values.max()) < 1 << piece_layout()[name].width
    assert CURVE_BENDS.min() >= -(1 << 12) and CURVE_BENDS.max() < 1 << 12


class Case(NamedTuple):
    """A logit and what is made of it."""

    function: Function
    logit: int
    peak: int = 0
    lse: int = 0


def value(case: Case, exponent: int) -> int:
    if case.function == Function.EXPONENTIAL:
        return int(twin.exponential(case.peak - case.logit, exponent, case.lse))
    if case.function == Function.LOGARITHM:
        return int(twin.curve(LOGARITHM, twin.fixed(case.logit, exponent)))
    return int((twin.sigmoid if case.function == Function.SIGMOID else twin.root_of_softplus)(case.logit, exponent))


async def check(dut: Any, cases: list[Case], exponent: int, idle: float = 0) -> None:
    """The values of ``cases``, each ``LATENCY`` cycles after its logit; peak and lse are there for a cycle."""
    dut.shift.value = min(127, max(0, 12 - exponent))
    waiting = deque(cases)
    expected: deque[tuple[int, ...] | None] = deque([None] * LATENCY)
    peak: deque[int] = deque([0])
    lse: deque[int] = deque([0] * 7)
    while waiting or any(expected):
        case = waiting.popleft() if waiting and random.random() >= idle else None
        marks = [random.randrange(2), random.randrange(2), random.randrange(256)]
        dut.valid.value, dut.last.value, dut.choice.value, dut.row.value = int(case is not None), *marks
        peak.append(case.peak if case else random.getrandbits(40))
        lse.append(case.lse if case else random.getrandbits(32))
        dut.peak.value, dut.lse.value = peak.popleft(), lse.popleft()
        if case is None:
            expected.append(None)
        else:
            dut.function.value, dut.logit.value = case.function.value, case.logit
            fixed = 4 * int(np.sign(case.logit)) * int(twin.fixed(case.logit, exponent))
            expected.append((*marks, case.logit, fixed, value(case, exponent)))
            if case.function == Function.EXPONENTIAL:
                expected[-1] = (*expected[-1][:-2], None, expected[-1][-1])
        await ReadOnly()
        want = expected.popleft()
        assert int(dut.o_valid.value) == (want is not None)
        if want is not None:
            logit, z = unpack_signed(int(dut.o_logit.value), ACC_BITS), unpack_signed(int(dut.o_fixed.value), 43)
            marks = [int(port.value) for port in (dut.o_last, dut.o_choice, dut.o_row)]
            got = (*marks, logit, z if want[-2] is not None else None, int(dut.o_score.value))
            assert got == want
        await RisingEdge(dut.clk)
    dut.valid.value = 0


def random_case(magnitude: int, function: Function | None = None) -> Case:
    """A case whose argument has this magnitude: of an exponential, a distance."""
    function = function or random.choice([Function.EXPONENTIAL, Function.SIGMOID, Function.ROOT])
    if function != Function.EXPONENTIAL:
        return Case(function, random.choice([-1, 1]) * min(magnitude, LARGEST))
    peak = random.randint(magnitude - LARGEST - 1, LARGEST)
    return Case(function, peak - magnitude, peak, random.choice([0, random.getrandbits(31)]))


async def begin(dut: Any) -> None:
    dut.valid.value = 0
    await start(dut)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(function=[0, 1, 2], idle=[0, 0.5])
async def every_piece(dut: Any, function: int, idle: float) -> None:
    """Both signs, and every position within a piece; beyond the last piece, too."""
    await begin(dut)
    pieces = [(piece << 21) + random.getrandbits(21) for piece in range(34 << 7)]
    await check(dut, [random_case(magnitude, Function(function)) for magnitude in pieces], -28, idle)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(function=[0, 1, 2])
async def ends_of_pieces(dut: Any, function: int) -> None:
    await begin(dut)
    ends = [(piece << 21) + offset for piece in range(1, 34 << 7) for offset in (-1, 0)]
    await check(dut, [random_case(magnitude, Function(function)) for magnitude in ends], -28)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def roots_of_large_logits(dut: Any) -> None:
    await begin(dut)
    ends = [(piece << 21 + octave) + offset for octave in range(12) for piece in range(128, 257) for offset in (-1, 0)]
    await check(dut, [Case(Function.ROOT, magnitude) for magnitude in ends], -28)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def logarithms(dut: Any) -> None:
    await begin(dut)
    places = [(piece << 21) + offset for piece in range(128) for offset in (0, random.getrandbits(21), (1 << 21) - 1)]
    await check(dut, [Case(Function.LOGARITHM, 4 * place) for place in places], -30)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def every_shift(dut: Any) -> None:
    """Logits of 0 to 48 bits at exponents where they vanish, where they saturate, and all between."""
    await begin(dut)
    for exponent in [-2048, *range(-130, 16), 2047]:
        magnitudes = [0, 1, LARGEST, 2 * LARGEST + 1, *(random.getrandbits(bits) for bits in range(1, ACC_BITS, 5))]
        await check(dut, [*map(random_case, magnitudes), Case(Function.ROOT, -LARGEST - 1)], exponent)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    dut.valid.value = 1
    await ClockCycles(dut.clk, 5)
    dut.valid.value = 0
    await reset(dut)
    await check(dut, [Case(Function.SIGMOID, 1), Case(Function.ROOT, -1), Case(Function.SIGMOID, 0)], -20)


def test_scores_fit() -> None:
    assert int(twin.root_of_softplus(LARGEST, 0)) < 1 << SCORE_BITS
