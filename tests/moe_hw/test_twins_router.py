"""The router's scores against the real functions, and its order against a definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe_hw.registers import ONE
from moe_hw.spec import SCORES
from moe_hw.twins.router import (
    UNIT,
    Rules,
    exponential,
    fixed,
    in_groups,
    log_sum,
    root_of_softplus,
    route,
    shared_gate,
    sigmoid,
    top_k,
)

SCALE = (-14 & 0xFFF) << 16 | round(2.446 * 2**14)
SOFTMAX, SIGMOID, ROOT = (SCORES.index(name) for name in ("softmax", "sigmoid", "sqrtsoftplus"))

accumulators = st.integers(-(1 << 47), (1 << 47) - 1)


def real_sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


def real_root(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.logaddexp(0, np.minimum(x, 4096)))


FUNCTIONS: dict[str, tuple[Callable[..., np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "sigmoid": (sigmoid, real_sigmoid),
    "root": (root_of_softplus, real_root),
    "exponential": (lambda acc, a: exponential(np.abs(acc), a), lambda x: np.exp(-np.abs(x))),
}


def values(mantissas: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    return np.ldexp(mantissas.astype(float), exponents)


@given(acc=hnp.arrays(np.int64, st.integers(1, 12), elements=st.integers(-3, 3)), data=st.data())
def test_top_k_is_descending_with_ties_to_the_lower_index(acc: np.ndarray, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(acc)))
    expected = sorted(range(len(acc)), key=lambda index: (-acc[index], index))[:count]
    assert top_k(acc, count).tolist() == expected


@pytest.mark.parametrize("name", FUNCTIONS)
@given(acc=accumulators, a=st.integers(-400, 400))
def test_scores_of_any_accumulator(name: str, acc: int, a: int) -> None:
    v = int(fixed(acc, a))
    assert v == min(abs(acc) << a + 428 >> 400, (1 << 40) - 1)
    function, real = FUNCTIONS[name]
    expected = real(np.asarray(v * 2.0**-28 * (1 if acc >= 0 else -1)))
    assert abs(int(function(acc, a)) / UNIT - expected) < 2**-24 * max(1, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_scores_in_all_pieces(name: str) -> None:
    function, real = FUNCTIONS[name]
    step = 4093
    z = np.arange(-(34 << 28), 34 << 28, step, dtype=np.int64)
    q = function(z, -28)
    error = np.abs(q / UNIT - real(z * 2.0**-28))
    score = real(z * 2.0**-28)
    assert (error < 2.0 ** (-23 if name == "root" else -24) * np.maximum(1, score)).all()
    assert name == "root" or error[score < 0.12].max() < 2**-26
    rising = np.diff(q) if name != "exponential" else np.diff(q[len(q) // 2 :]) * -1
    assert rising.min() > -(2**8)  # where pieces meet


def test_scores_at_their_ends() -> None:
    far = [0, 32 << 28, -(32 << 28)]
    assert sigmoid(far, -28).tolist() == [UNIT // 2, UNIT, 0]
    assert exponential([0, 32 << 28], -28).tolist() == [UNIT, 0]
    large = np.arange(32 << 28, 1 << 40, 1234567891)
    np.testing.assert_allclose(root_of_softplus(large, -28) / UNIT, np.sqrt(large * 2.0**-28), rtol=2**-24)
    assert root_of_softplus([-(40 << 28), 1 << 44, 1 << 47], -28).tolist() == pytest.approx([0, 64 * UNIT, 64 * UNIT])


@given(logits=hnp.arrays(np.float64, (3, 7), elements=st.floats(-20, 20, width=32)))
def test_logarithm_of_a_sum(logits: np.ndarray) -> None:
    acc = np.rint(np.ldexp(logits, 28)).astype(np.int64)
    below = acc.max(axis=1, keepdims=True) - acc
    expected = np.log(np.exp(-below * 2.0**-28).sum(axis=1, keepdims=True))
    assert np.abs(log_sum(exponential(below, -28)) * 2.0**-28 - expected).max() < 2**-23


def test_logarithms_of_all_sums() -> None:
    for others in range(512):
        q = np.full((1, 1 + others), UNIT)
        assert log_sum(q)[0, 0] * 2.0**-28 == pytest.approx(np.log(1 + others), abs=2**-24)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@given(
    logits=hnp.arrays(np.float64, (3, 6), elements=st.floats(-20, 20, width=32)),
    a=st.integers(-40, -21),
    count=st.integers(1, 6),
)
@settings(deadline=None)
def test_weights_are_a_softmax(normalise: bool, whole: bool, logits: np.ndarray, a: int, count: int) -> None:
    """Of the choices, whether their scores are over all experts or not; a table of zeros makes them."""
    acc = np.rint(np.ldexp(logits, -a)).astype(np.int64)
    rules = Rules(6, count, normalise=int(normalise), correction=int(whole))
    routes = route(acc, np.full(3, a), rules, np.zeros(6, int))
    weights = values(routes.mantissas, routes.exponents)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    chosen = np.take_along_axis(probabilities, routes.experts, 1)
    expected = chosen / (chosen if normalise else probabilities).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, expected, rtol=2**-14, atol=2**-22)
    assert routes.shared is None
    normalised = (routes.mantissas >= 1 << 15) & (routes.mantissas < 1 << 16)
    assert (normalised | (routes.mantissas == 0)).all()


@given(acc=hnp.arrays(np.int64, (2, 5), elements=accumulators), a=st.integers(-300, 300))
@settings(deadline=None)
def test_any_accumulators_give_weights_of_at_most_one(acc: np.ndarray, a: int) -> None:
    routes = route(acc, np.full(2, a), Rules(5, 5))
    weights = values(routes.mantissas, routes.exponents)
    assert (np.diff(weights, axis=1) <= 0).all() and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-4)


@given(logit=st.floats(-50, 50, width=32), a=st.integers(-41, -20))
def test_shared_gate_is_a_sigmoid(logit: float, a: int) -> None:
    mantissa, exponent = shared_gate([round(logit * 2.0**-a)], [a])
    expected = float(real_sigmoid(np.asarray(logit)))
    assert float(values(mantissa, exponent)[0]) == pytest.approx(expected, rel=2**-15, abs=2**-22)


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


@pytest.mark.parametrize(
    ("score", "correction"),
    [(score, correction) for score in (SOFTMAX, SIGMOID, ROOT) for correction in range(3 if score else 2)],
)
def test_choices_are_those_of_a_float64_router(score: int, correction: int) -> None:
    """All tokens but those whose last choice is within 1e-6 of the next expert's key, or a group's of the next."""
    random = np.random.default_rng(3 * score + correction)
    tokens, experts, a = 20_000, 64, -30
    acc = np.rint(np.ldexp(random.normal(0, 2, (tokens, experts)), -a)).astype(np.int64)
    bias = random.normal(0, 0.01 if score == SOFTMAX and correction == 1 else 0.1, experts)
    table = np.rint(np.ldexp(bias, 30)).astype(np.int64)
    rules = Rules(experts, 6, score, correction=correction)
    if correction == 1:
        rules = rules._replace(group_size=8, kept_groups=4, group_sum=1)
    routes = route(acc, np.full(tokens, a), rules, table)

    logits = np.ldexp(acc.astype(float), a)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    scores = (softmax, real_sigmoid(logits), real_root(logits))[score]
    keys = (logits, scores + table / UNIT, logits + table / UNIT)[correction]
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
    expected_weights = chosen / chosen.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(values(routes.mantissas, routes.exponents), expected_weights, rtol=1e-4, atol=2**-22)


@pytest.mark.parametrize("score", [SIGMOID, ROOT])
def test_scores_that_are_not_shared_out_are_the_weights(score: int) -> None:
    logits = np.linspace(-33, 33, 12)[None]
    acc = np.rint(np.ldexp(logits, 30)).astype(np.int64)
    routes = route(acc, np.array([-30]), Rules(12, 12, score, normalise=0))
    weights = values(routes.mantissas, routes.exponents)
    expected = (real_sigmoid if score == SIGMOID else real_root)(logits[:, ::-1])
    np.testing.assert_allclose(weights, expected, rtol=2**-15, atol=2**-23)
    assert weights[0, -1] == 0 and routes.exponents[0, -1] == -2048  # below the units of a score


@pytest.mark.parametrize("score", [SOFTMAX, SIGMOID, ROOT])
def test_weights_have_a_factor(score: int) -> None:
    logits = np.random.default_rng(4).normal(0, 2, (50, 6))
    acc = np.rint(np.ldexp(logits, 30)).astype(np.int64)
    one, scaled = (
        values(routes.mantissas, routes.exponents)
        for routes in (route(acc, np.full(50, -30), Rules(6, 3, score, scale=scale)) for scale in (ONE, SCALE))
    )
    np.testing.assert_allclose(scaled, 2.446 * one, rtol=2**-14)


def test_a_sum_of_scores_begins_at_epsilon() -> None:
    acc = np.array([[0, -(1 << 40)]])
    routes = route(acc, np.array([-30]), Rules(2, 2, SIGMOID, epsilon=1 << 29))
    assert values(routes.mantissas, routes.exponents).tolist() == [[0.5, 0.0]]
    nothing = route(acc - (1 << 41), np.array([-30]), Rules(2, 2, SIGMOID))
    assert nothing.mantissas.tolist() == [[0, 0]]
