"""SwiGLU and re-quantising against real arithmetic, within the errors that their tables allow."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe_hw.formats import EXP_ZERO
from moe_hw.twins.arith import EXP_MIN, norm16
from moe_hw.twins.post import SIGMOID_STEPS, SIGMOID_VALUES, requantise, sigmoid, swiglu

accumulators = st.integers(-(1 << 47), (1 << 47) - 1)
exponents = st.integers(-600, 400)


def test_tables() -> None:
    assert (SIGMOID_VALUES[0], SIGMOID_VALUES[512], len(SIGMOID_STEPS)) == (0, 1 << 15, 512)
    assert np.array_equal(SIGMOID_VALUES[:-1] + SIGMOID_STEPS, SIGMOID_VALUES[1:])


@given(value=st.integers(0, (1 << 47) - 1), exponent=st.integers(-80, 20))
def test_sigmoid(value: int, exponent: int) -> None:
    s = int(sigmoid(*norm16(value, exponent)))
    expected = 1 / (1 + exp(-min(value * 2.0**exponent, 500)))
    assert 1 << 15 <= s <= 1 << 16
    assert s / 2**16 == pytest.approx(expected, abs=4e-5)


@pytest.mark.parametrize(("mantissa", "exponent", "s"), [(0, EXP_MIN, 1 << 15), (1 << 15, 100, 1 << 16)])
def test_sigmoid_at_its_ends(mantissa: int, exponent: int, s: int) -> None:
    assert sigmoid(mantissa, exponent) == s


@given(g=accumulators, u=accumulators, a_g=st.integers(-60, -40), a_u=st.integers(-60, -40))
def test_swiglu(g: int, u: int, a_g: int, a_u: int) -> None:
    sign, mantissa, exponent = (int(part) for part in swiglu(g, u, a_g, a_u))
    gate, up = g * 2.0**a_g, u * 2.0**a_u
    value = (-1) ** sign * mantissa * 2.0**exponent
    assert value == pytest.approx(
        gate * up / (1 + exp(-min(max(gate, -700), 700))), rel=1e-4, abs=abs(gate * up) * 4e-5
    )


@given(g=accumulators, u=accumulators, a_g=exponents, a_u=exponents)
def test_swiglu_of_anything_is_normalised(g: int, u: int, a_g: int, a_u: int) -> None:
    sign, mantissa, exponent = (int(part) for part in swiglu(g, u, a_g, a_u))
    assert mantissa == 0 or 1 << 15 <= mantissa < 1 << 16
    assert -2048 <= exponent < 2048
    assert sign == ((g < 0) != (u < 0))


@pytest.mark.parametrize(("g", "u"), [(0, 5), (5, 0), (0, 0)])
def test_swiglu_of_zero(g: int, u: int) -> None:
    assert [int(part) for part in swiglu(g, u, 0, 0)][1:] == [0, EXP_MIN]


def test_a_very_negative_gate_gives_zero() -> None:
    assert int(swiglu(-(1 << 46), 1, 0, 0)[1]) == 0


mantissas = st.just(0) | st.integers(1 << 15, (1 << 16) - 1)


@given(
    mantissa=hnp.arrays(np.int64, (2, 64), elements=mantissas),
    exponent=hnp.arrays(np.int64, (2, 64), elements=st.integers(-20, 20)),
    sign=hnp.arrays(np.int64, (2, 64), elements=st.integers(0, 1)),
)
@settings(deadline=None)
def test_requantised_blocks(mantissa: np.ndarray, exponent: np.ndarray, sign: np.ndarray) -> None:
    q, block_exponents = requantise(sign, mantissa, exponent)
    assert q.dtype == np.int8 and q.shape == (2, 2, 32) and block_exponents.shape == (2, 2)
    value = ((1 - 2 * sign) * np.ldexp(mantissa.astype(float), exponent)).reshape(2, 2, 32)
    step = np.ldexp(1.0, block_exponents)[..., None]
    error = np.abs(q * step - value)
    assert (error <= np.where(np.abs(q) == 127, step, step / 2)).all()
    busy = value.any(axis=2)
    assert (np.abs(q).max(axis=2)[busy] >= 64).all()
    assert (block_exponents[~busy] == EXP_ZERO).all()


def test_a_block_of_zeros() -> None:
    q, exponent = requantise(np.ones(32), np.zeros(32, np.int64), np.full(32, EXP_MIN))
    assert not q.any() and exponent.tolist() == [EXP_ZERO]


def test_the_largest_mantissa_is_held_at_127() -> None:
    q, exponent = requantise([1] + 31 * [0], [65535] + 31 * [0], [0] + 31 * [EXP_MIN])
    assert (q[0, 0], exponent[0]) == (-127, 9)
