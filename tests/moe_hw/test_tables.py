"""The tables against their definitions, evaluated with 50 digits."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import pytest

from moe_hw.tables import EXP_STEPS, EXP_VALUES, GATE_STEPS, GATE_VALUES, GATES, LOG2_E, RELU


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    with localcontext() as context:
        context.prec = 50
        yield


def nearest(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))


def test_log2_e() -> None:
    assert nearest(2**17 / Decimal(2).ln()) == LOG2_E


def test_exponential() -> None:
    assert EXP_VALUES.tolist() == [nearest(2 ** (17 - Decimal(i) / 256)) for i in range(257)]
    assert EXP_STEPS.tolist() == [int(EXP_VALUES[i] - EXP_VALUES[i + 1]) for i in range(256)]
    assert (EXP_VALUES[0], EXP_VALUES[256]) == (1 << 17, 1 << 16)


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
    assert EXP_STEPS.min() > 0 and EXP_STEPS.max() < 1 << 9
    assert GATE_STEPS.min() >= 0 and GATE_STEPS.max() < 1 << 10
    assert GATE_VALUES[:, 0].max() == 0 and GATE_VALUES[:, 512].min() == GATE_VALUES.max() == 1 << 15


def test_the_generator_needs_no_torch() -> None:
    code = "import sys, moe_hw.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
