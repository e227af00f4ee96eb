"""The tables against their definitions, evaluated with 50 digits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import pytest

from moe_hw.tables import EXP_STEPS, EXP_VALUES, LOG2_E, SIGMOID_STEPS, SIGMOID_VALUES


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


def test_sigmoid() -> None:
    assert SIGMOID_VALUES.tolist() == [
        nearest(2**16 / (1 + (-Decimal(i) / 32).exp())) - 32768 for i in range(513)
    ]
    assert SIGMOID_STEPS.tolist() == [int(SIGMOID_VALUES[i + 1] - SIGMOID_VALUES[i]) for i in range(512)]


def test_pieces_fit_the_widths_of_the_rtl() -> None:
    assert EXP_STEPS.min() > 0 and EXP_STEPS.max() < 1 << 9
    assert SIGMOID_STEPS.min() >= 0 and SIGMOID_STEPS.max() < 1 << 10


def test_the_generator_needs_no_torch() -> None:
    code = "import sys, moe_hw.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
