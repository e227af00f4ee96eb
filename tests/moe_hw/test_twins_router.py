"""The router's choices and weights against real exponentials, and its order against a definition."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe_hw.registers import ONE
from moe_hw.tables import EXP_STEPS, EXP_VALUES, LOG2_E
from moe_hw.twins.router import Rules, exponential, fixed, fraction, in_groups, route, shared_gate, sigmoid, top_k

SCALE = (-14 & 0xFFF) << 16 | round(2.446 * 2**14)

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
    routes = route(acc, np.full(3, a), Rules(6, count, int(normalise)))
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
    routes = route(acc, np.full(2, a), Rules(5, 5))
    weights = values(routes.mantissas, routes.exponents)
    assert (np.diff(weights, axis=1) <= 0).all() and (weights > 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-4)


@given(logit=st.floats(-50, 50, width=32), a=st.integers(-41, -20))
def test_shared_gate_is_a_sigmoid(logit: float, a: int) -> None:
    mantissa, exponent = shared_gate([round(logit * 2.0**-a)], [a])
    assert float(values(mantissa, exponent)[0]) == pytest.approx(1 / (1 + exp(-logit)), rel=2e-4)


def test_rows_beyond_the_experts_are_not_chosen() -> None:
    acc = np.array([[1, 3, 2, 1 << 40]])
    routes = route(acc, np.array([-20]), Rules(3, 3, shared_blocks=1, shared_gate=1))
    assert routes.experts.tolist() == [[1, 2, 0]]
    assert routes.shared is not None and values(*routes.shared)[0] == pytest.approx(1, abs=1e-4)
    routes = route(acc, np.array([-20]), Rules(3, 3, shared_blocks=1))
    assert routes.shared is not None and values(*routes.shared).tolist() == [1.0]


def test_equal_logits_share_equally() -> None:
    routes = route(np.zeros((1, 4), np.int64), np.array([-20]), Rules(4, 4))
    assert routes.experts.tolist() == [[0, 1, 2, 3]]
    assert values(routes.mantissas, routes.exponents).tolist() == [[0.25] * 4]


@given(acc=accumulators, a=st.integers(-400, 400))
def test_sigmoid(acc: int, a: int) -> None:
    z = int(fixed(acc, a))
    assert abs(z) == min(abs(acc) << a + 428 >> 400, (1 << 40) - 1)
    s = int(sigmoid(z))
    assert 0 <= s <= 1 << 28 and s + int(sigmoid(-z)) == 1 << 28
    assert abs(s * 2.0**-28 - 1 / (1 + exp(-z * 2.0**-28 if z > -(1 << 37) else 700))) < 2**-25


def test_sigmoid_in_all_pieces() -> None:
    z = np.arange(-(26 << 28), 26 << 28, 4099, dtype=np.int64)
    s = sigmoid(z)
    assert np.abs(s * 2.0**-28 - 1 / (1 + np.exp(-z * 2.0**-28))).max() < 2**-25
    assert np.diff(s).min() > -(2**4)  # where pieces meet
    assert sigmoid([0, 24 << 28, -(24 << 28)]).tolist() == [1 << 27, 1 << 28, 0]


def float_choice(keys: np.ndarray, rules: Rules) -> list[list[int]]:
    """The experts of each token, from sorted lists."""
    chosen = []
    for row in keys.tolist():
        size = rules.group_size or len(row)
        groups = [row[first : first + size] for first in range(0, len(row), size)]
        worth = [sum(sorted(group)[-2:]) if rules.group_sum else max(group) for group in groups]
        kept = sorted(range(len(groups)), key=lambda group: (-worth[group], group))[: rules.kept_groups or 1]
        others = 0 if rules.group_zero else -np.inf
        masked = [key if index // size in kept else others for index, key in enumerate(row)]
        chosen.append(sorted(range(len(row)), key=lambda index: (-masked[index], index))[: rules.top_k])
    return chosen


@given(
    keys=hnp.arrays(np.int64, (3, 12), elements=st.integers(-4, 4)),
    size=st.sampled_from([2, 3, 4, 6, 12]),
    data=st.data(),
)
def test_groups_are_ranked_and_left_out(keys: np.ndarray, size: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, 12 // size))
    zero = data.draw(st.booleans())
    count = data.draw(st.integers(1, 12 if zero else kept * size))
    rules = Rules(12, count, group_size=size, kept_groups=kept, group_sum=data.draw(st.integers(0, 1)), group_zero=zero)
    assert top_k(in_groups(keys, rules), count).tolist() == float_choice(keys, rules)


@pytest.mark.parametrize(("correction", "seed"), [(0, 1), (1, 2), (2, 3)])
def test_choices_are_those_of_a_float64_router(correction: int, seed: int) -> None:
    """All tokens but those whose last choice is within 1e-6 of the next expert's key, or a group's of the next."""
    random = np.random.default_rng(seed)
    tokens, experts, a = 20_000, 64, -30
    acc = np.rint(np.ldexp(random.normal(0, 2, (tokens, experts)), -a)).astype(np.int64)
    table = np.rint(np.ldexp(random.normal(0, 0.1, experts), 28)).astype(np.int64)
    rules = Rules(experts, 6, sigmoid=1, correction=correction, epsilon=1)
    if correction == 1:
        rules = rules._replace(group_size=8, kept_groups=4, group_sum=1)
    routes = route(acc, np.full(tokens, a), rules, table)

    logits = np.ldexp(acc.astype(float), a)
    scores = 1 / (1 + np.exp(-logits))
    keys = (logits, scores + table * 2.0**-28, logits + table * 2.0**-28)[correction]
    expected = np.array(float_choice(keys, rules))
    differ = (routes.experts != expected).any(axis=1)
    margin = np.full(tokens, np.inf)
    if correction == 1:
        ranked = np.sort(keys.reshape(tokens, 8, 8))[..., -2:].sum(axis=-1)
        ranked.sort(axis=-1)
        margin = (ranked[:, -4] - ranked[:, -5]) / np.abs(ranked[:, -4])
    first = -np.sort(-keys)
    margin = np.minimum(margin, (np.abs(np.diff(first)) / np.abs(first[:, 1:])).min(axis=1))
    assert (margin[differ] < 1e-6).all() and differ.mean() < 1e-2

    chosen = np.take_along_axis(scores, routes.experts, 1)
    np.testing.assert_allclose(
        values(routes.mantissas, routes.exponents), chosen / chosen.sum(axis=1, keepdims=True), rtol=1e-4
    )


def test_sigmoids_that_are_not_shared_out_are_the_weights() -> None:
    logits = np.linspace(-30, 30, 12)[None]
    acc = np.rint(np.ldexp(logits, 30)).astype(np.int64)
    routes = route(acc, np.array([-30]), Rules(12, 12, normalise=0, sigmoid=1, epsilon=1))
    weights = values(routes.mantissas, routes.exponents)
    np.testing.assert_allclose(weights, 1 / (1 + np.exp(-logits[:, ::-1])), rtol=2**-15, atol=2**-25)
    assert weights[0, -1] == 0 and routes.exponents[0, -1] == -2048  # below the units of a sigmoid


def test_weights_have_a_factor() -> None:
    logits = np.random.default_rng(4).normal(0, 2, (50, 6))
    acc = np.rint(np.ldexp(logits, 30)).astype(np.int64)
    for sigmoids in (0, 1):
        rules = Rules(6, 3, sigmoid=sigmoids, epsilon=sigmoids)
        one, scaled = (
            values(routes.mantissas, routes.exponents)
            for routes in (route(acc, np.full(50, -30), rules._replace(scale=scale)) for scale in (ONE, SCALE))
        )
        np.testing.assert_allclose(scaled, 2.446 * one, rtol=2**-14)


def test_a_sum_of_sigmoids_begins_at_epsilon() -> None:
    acc = np.array([[0, -(1 << 40)]])
    routes = route(acc, np.array([-30]), Rules(2, 2, sigmoid=1, epsilon=1 << 30))
    assert values(routes.mantissas, routes.exponents).tolist() == [[0.5, 0.0]]
    nothing = route(acc - (1 << 41), np.array([-30]), Rules(2, 2, sigmoid=1, epsilon=1))
    assert nothing.mantissas.tolist() == [[0, 0]]
