"""Weighting, saturation and the conversion to float32, against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_hw.twins.arith import norm16
from moe_hw.twins.combine import WORD_MAX, add, contribution, to_float32, weight_to_float32

words = st.integers(-WORD_MAX, WORD_MAX)
weights = st.just(0) | st.integers(1 << 15, (1 << 16) - 1)


@given(d=words, a_down=st.integers(-100, 100), weight=weights, exponent=st.integers(-60, -15), k=st.integers(-150, 150))
def test_contribution(d: int, a_down: int, weight: int, exponent: int, k: int) -> None:
    value, overflow = contribution(d, a_down, weight, exponent, k)
    mantissa, mantissa_exponent = (int(part) for part in norm16(abs(d), a_down))
    exact = mantissa * weight * Fraction(2) ** (mantissa_exponent + exponent - k)
    right = k - mantissa_exponent - exponent + 15
    if exact and right < 0:
        assert overflow and abs(value) == WORD_MAX
    elif right > 63:
        assert not overflow and value == 0
    else:
        assert not overflow and abs(value) == floor(exact + Fraction(1, 2))
    assert value == 0 or (value < 0) == (d < 0)


@pytest.mark.parametrize(("d", "weight"), [(0, 1 << 15), (123, 0), (0, 0)])
def test_zeros_add_nothing_even_where_they_would_overflow(d: int, weight: int) -> None:
    value, overflow = contribution(d, 300, weight, -15, -300)
    assert value == 0 and not overflow


def test_most_negative_accumulator() -> None:
    value, overflow = contribution(-(1 << 47), -20, 1 << 15, -15, -10)
    assert value == -(1 << 37) and not overflow


@given(word=words, value=words)
def test_sums_saturate(word: int, value: int) -> None:
    total, overflow = add(word, value)
    assert total == max(-WORD_MAX, min(WORD_MAX, word + value))
    assert overflow == (abs(word + value) > WORD_MAX)


@given(word=words, exponent=st.integers(-149, 80))
def test_normal_floats_round_half_to_even(word: int, exponent: int) -> None:
    """Where the result is a normal number, NumPy's conversion of the exact float64 rounds the same way."""
    exact = np.ldexp(np.float64(word), exponent)
    expected = exact.astype(np.float32)
    if word == 0 or abs(expected) > np.finfo(np.float32).tiny:
        assert to_float32(word, exponent).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("word", "exponent", "value"),
    [
        (0, 0, 0.0),
        ((1 << 24) + 1, 0, 2.0**24),
        ((1 << 24) + 3, 0, 2.0**24 + 4),
        (-(1 << 25) - 3, 0, -(2.0**25) - 4),
        ((1 << 25) - 1, 0, 2.0**25),
        (1, -126, 2.0**-126),
        (1, -127, 0.0),
        (-1, -127, 0.0),
        ((1 << 24) - 1, -150, 0.0),
        ((1 << 25) - 1, -151, 2.0**-126),
        (1, 128, float(np.finfo(np.float32).max)),
        (-1, 2047, -float(np.finfo(np.float32).max)),
        (1, -2048, 0.0),
        ((1 << 25) - 1, 103, float(np.finfo(np.float32).max)),
    ],
)
def test_float_corners(word: int, exponent: int, value: float) -> None:
    assert to_float32(word, exponent).tobytes() == np.float32(value).tobytes()


def test_weights_are_exact() -> None:
    assert weight_to_float32([1 << 15, 65535, 1 << 15, 1 << 15], [-15, -16, -141, -142]).tolist() == [
        1.0,
        65535 / 65536,
        2.0**-126,
        0.0,
    ]
