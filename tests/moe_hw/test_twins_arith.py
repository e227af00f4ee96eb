"""Rounding shifts and normalisation against their definitions."""

from __future__ import annotations

from fractions import Fraction
from math import floor

from hypothesis import given
from hypothesis import strategies as st

from moe_hw.twins.arith import EXP_MIN, bit_length, norm16, rshift

words = st.integers(-(1 << 62), 1 << 62)
magnitudes = st.integers(0, (1 << 53) - 1) | st.integers(0, 53).map(lambda bit: (1 << bit) - 1)


@given(value=words, amount=st.integers(0, 63))
def test_rshift_rounds_half_up(value: int, amount: int) -> None:
    assert rshift(value, amount) == floor(Fraction(value, 1 << amount) + Fraction(int(amount > 0), 2))


@given(value=magnitudes)
def test_bit_length(value: int) -> None:
    assert bit_length(value) == value.bit_length()


@given(value=magnitudes, exponent=st.integers(-1000, 1000))
def test_norm16_is_the_nearest_mantissa_of_16_bits(value: int, exponent: int) -> None:
    mantissa, result = (int(part) for part in norm16(value, exponent))
    if value == 0:
        assert (mantissa, result) == (0, EXP_MIN)
        return
    assert 1 << 15 <= mantissa < 1 << 16
    error = Fraction(mantissa) * Fraction(2) ** (result - exponent) - value
    half = Fraction(2) ** (value.bit_length() - 17)
    assert -half < error <= half


def test_norm16_carries_into_the_next_power() -> None:
    assert [int(part) for part in norm16((1 << 20) - 1, 0)] == [1 << 15, 5]
    assert [int(part) for part in norm16((1 << 16) - 1, 0)] == [(1 << 16) - 1, 0]
