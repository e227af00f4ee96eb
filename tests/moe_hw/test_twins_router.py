"""The router's choices and weights against real exponentials, and its order against a definition."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe_hw.twins.router import EXP_STEPS, EXP_VALUES, LOG2_E, exponential, fraction, route, shared_gate, top_k

accumulators = st.integers(-(1 << 47), (1 << 47) - 1)


def values(mantissas: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    return np.ldexp(mantissas.astype(float), exponents)


def test_tables() -> None:
    assert (EXP_VALUES[0], EXP_VALUES[256], len(EXP_STEPS)) == (1 << 17, 1 << 16, 256)
    assert np.array_equal(EXP_VALUES[:-1] - EXP_STEPS, EXP_VALUES[1:])
    assert round(np.log2(np.e) * 2**17) == LOG2_E


@given(acc=hnp.arrays(np.int64, st.integers(1, 12), elements=st.integers(-3, 3)), data=st.data())
def test_top_k_is_descending_with_ties_to_the_lower_index(acc: np.ndarray, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(acc)))
    expected = sorted(range(len(acc)), key=lambda index: (-acc[index], index))[:count]
    assert top_k(acc, count).tolist() == expected


@given(d=st.integers(0, (1 << 48) - 1), a=st.integers(-400, 400))
def test_exponential(d: int, a: int) -> None:
    y, n = (int(part) for part in exponential(d, a))
    assert 1 << 16 <= y <= 1 << 17 and 0 <= n <= 92
    # Absolute: an argument in units of 2^-20, and its product with log2(e) in the same; relative: 17 bits of y.
    argument = min(d * 2.0**a if a < 100 else float(d > 0) * 64, 64)
    assert y * 2.0 ** (-17 - n) == pytest.approx(exp(-argument), rel=2e-5)
    assert fraction(y, n) == ((y << 14) >> n if n <= 31 else 0)


def test_exponential_of_zero_is_one() -> None:
    assert [int(part) for part in exponential(0, 0)] == [1 << 17, 0]
    assert fraction(1 << 17, 0) == 1 << 31


@pytest.mark.parametrize("normalise", [False, True])
@given(
    logits=hnp.arrays(np.float64, (3, 6), elements=st.floats(-20, 20, width=32)),
    a=st.integers(-40, -21),
    count=st.integers(1, 6),
)
@settings(deadline=None)
def test_weights_are_a_softmax(normalise: bool, logits: np.ndarray, a: int, count: int) -> None:
    acc = np.rint(np.ldexp(logits, -a)).astype(np.int64)
    routes = route(acc, np.full(3, a), count, normalise, 6)
    weights = values(routes.mantissas, routes.exponents)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    chosen = np.take_along_axis(probabilities, routes.experts, 1)
    expected = chosen / (chosen if normalise else probabilities).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, expected, rtol=2e-4)
    assert routes.shared is None
    assert ((routes.mantissas >= 1 << 15) & (routes.mantissas < 1 << 16)).all()


@given(acc=hnp.arrays(np.int64, (2, 5), elements=accumulators), a=st.integers(-300, 300))
@settings(deadline=None)
def test_any_accumulators_give_weights_of_at_most_one(acc: np.ndarray, a: int) -> None:
    routes = route(acc, np.full(2, a), 5, True, 5)
    weights = values(routes.mantissas, routes.exponents)
    assert (np.diff(weights, axis=1) <= 0).all() and (weights > 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-4)


@given(logit=st.floats(-50, 50, width=32), a=st.integers(-41, -20))
def test_shared_gate_is_a_sigmoid(logit: float, a: int) -> None:
    mantissa, exponent = shared_gate([round(logit * 2.0**-a)], [a])
    assert float(values(mantissa, exponent)[0]) == pytest.approx(1 / (1 + exp(-logit)), rel=2e-4)


def test_rows_beyond_the_experts_are_not_chosen() -> None:
    acc = np.array([[1, 3, 2, 1 << 40]])
    routes = route(acc, np.array([-20]), 3, True, 3, "gate")
    assert routes.experts.tolist() == [[1, 2, 0]]
    assert routes.shared is not None and values(*routes.shared)[0] == pytest.approx(1, abs=1e-4)
    routes = route(acc, np.array([-20]), 3, True, 3, "one")
    assert routes.shared is not None and values(*routes.shared).tolist() == [1.0]


def test_equal_logits_share_equally() -> None:
    routes = route(np.zeros((1, 4), np.int64), np.array([-20]), 4, True, 4)
    assert routes.experts.tolist() == [[0, 1, 2, 3]]
    assert values(routes.mantissas, routes.exponents).tolist() == [[0.25] * 4]
