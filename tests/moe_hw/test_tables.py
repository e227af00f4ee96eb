"""The tables against their definitions, evaluated with 50 digits."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import pytest

from moe_hw.tables import (
    CURVE_BENDS,
    CURVE_FINE,
    CURVE_PIECES,
    CURVE_SLOPES,
    CURVE_VALUES,
    EXPONENTIAL,
    GATE_STEPS,
    GATE_VALUES,
    GATES,
    LN_2,
    LOGARITHM,
    OCTAVE_PIECES,
    RELU,
    ROOT_ABOVE,
    ROOT_BELOW,
    SIGMOID,
    Curve,
)


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    with localcontext() as context:
        context.prec = 50
        yield


def nearest(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))


def test_ln_2() -> None:
    assert nearest(2**30 * Decimal(2).ln()) == LN_2


def exact(curve: Curve, v: Decimal) -> Decimal:
    """A curve by its definition."""
    return {
        SIGMOID: lambda: 1 / (1 + (-v).exp()),
        EXPONENTIAL: lambda: 1 - (-v).exp(),
        ROOT_BELOW: lambda: 1 - (1 + (-v).exp()).ln().sqrt(),
        ROOT_ABOVE: lambda: (1 + v.exp()).ln().sqrt(),
        LOGARITHM: lambda: (1 + v).ln(),
    }[curve]()


@pytest.mark.parametrize("curve", [SIGMOID, EXPONENTIAL, ROOT_BELOW, ROOT_ABOVE, LOGARITHM], ids=lambda c: str(c.base))
def test_curves(curve: Curve) -> None:
    """In every piece, at five places: within 2^-24 of the exact number, or of its size if that is above one."""
    for piece in range(OCTAVE_PIECES * curve.parts):
        octave = max(piece // OCTAVE_PIECES - 1, 0)
        index = OCTAVE_PIECES * curve.base + piece
        b0, b1, b2, fine = (int(column[index]) for column in (CURVE_VALUES, CURVE_SLOPES, CURVE_BENDS, CURVE_FINE))
        for part in (0, 0.11, 0.5, 0.87, 1):
            x = Decimal(part) / OCTAVE_PIECES
            slope = Decimal(b1) / 2**18 - Decimal(b2) / 2**12 * x
            value = (Decimal(b0) / 2**30 + slope / 4**fine * x) * (2 ** ((octave + 1) // 2) if curve.halved else 1)
            wanted = exact(curve, (Decimal(piece) / OCTAVE_PIECES - octave + x) * 2**octave)
            assert abs(value - wanted) < max(1, wanted) / 2**24, (piece, part)


def test_curves_fill_the_table() -> None:
    curves = [SIGMOID, EXPONENTIAL, ROOT_BELOW, ROOT_ABOVE, LOGARITHM]
    assert [curve.base for curve in curves] == [0, *itertools.accumulate(curve.parts for curve in curves[:-1])]
    assert sum(curve.parts for curve in curves) * OCTAVE_PIECES == CURVE_PIECES == len(CURVE_VALUES)
    assert CURVE_VALUES[0] == 1 << 29 and CURVE_VALUES[OCTAVE_PIECES * EXPONENTIAL.base] == 0


def exp(value: Decimal) -> Decimal:
    return value.exp()


def normal(value: Decimal) -> Decimal:
    """Distribution of the standard normal law, by the series of erf."""
    x = value / Decimal(2).sqrt()
    term, total, n = x, x, 0
    while abs(term) > Decimal("1e-45"):
        n += 1
        term = term * -x * x / n
        total += term / (2 * n + 1)
    pi = Decimal("3.14159265358979323846264338327950288419716939937510")
    return (1 + 2 / pi.sqrt() * total) / 2


def gelu_tanh(value: Decimal) -> Decimal:
    pi = Decimal("3.14159265358979323846264338327950288419716939937510")
    return 1 / (1 + exp(-2 * (2 / pi).sqrt() * (value + Decimal("0.044715") * value**3)))


GATES_OF = {
    "silu": lambda value: 1 / (1 + exp(-value)),
    "gelu_tanh": gelu_tanh,
    "gelu": lambda value: normal(value) if value < 9 else Decimal(1),  # 1 - 1e-18
    "quick_gelu": lambda value: 1 / (1 + exp(-Decimal("1.702") * value)),
}


@pytest.mark.parametrize("name", GATES_OF)
def test_activations(name: str) -> None:
    number = list(GATES).index(name)
    expected = [nearest(2**16 * GATES_OF[name](Decimal(i) / 32)) - 32768 for i in range(513)]
    assert GATE_VALUES[number].tolist() == expected
    assert GATE_STEPS[number].tolist() == [b - a for a, b in itertools.pairwise(expected)]


def test_relu_has_no_table() -> None:
    assert list(GATES).index("relu") == RELU == len(GATES) - 1 == len(GATE_VALUES)


def test_pieces_fit_the_widths_of_the_rtl() -> None:
    assert GATE_STEPS.min() >= 0 and GATE_STEPS.max() < 1 << 10
    assert GATE_VALUES[:, 0].max() == 0 and GATE_VALUES[:, 512].min() == GATE_VALUES.max() == 1 << 15


def test_the_generator_needs_no_torch() -> None:
    code = "import sys, moe_hw.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
