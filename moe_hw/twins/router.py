"""Choosing experts and weighting them, twin of ``rtl_gen/router.py`` and the blocks in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moe_hw.arch import EXP_MIN
from moe_hw.registers import ONE
from moe_hw.routes import GivenRoutes
from moe_hw.spec import SCORES, LayerSpec
from moe_hw.tables import (
    CURVE_BENDS,
    CURVE_FINE,
    CURVE_SLOPES,
    CURVE_VALUES,
    EXPONENTIAL,
    LN_2,
    LOGARITHM,
    OCTAVE_PIECES,
    ROOT_ABOVE,
    ROOT_BELOW,
    SIGMOID,
    Curve,
)
from moe_hw.twins.arith import bit_length, norm16

UNIT = 1 << 30
"""A score of one."""

_NEVER = -(1 << 62)
"""Below any key."""


class Rules(NamedTuple):
    """How logits become routes: words of the layer descriptor, of the same names."""

    experts: int
    top_k: int
    score: int = 0
    normalise: int = 1
    correction: int = 0
    correction_shift: int = 0
    group_size: int = 0
    kept_groups: int = 0
    group_sum: int = 0
    group_zero: int = 0
    epsilon: int = 1
    scale: int = ONE
    shared_blocks: int = 0
    shared_gate: int = 0


class Routes(NamedTuple):
    """Choices for T tokens; weights are ``mantissas * 2**exponents``.

    Attributes:
        experts: int64 ``[T, K]``, in descending order of the keys; given ones in any order, -1 for none.
        mantissas: int64 ``[T, K]``; only given ones can be negative.
        exponents: int64 ``[T, K]``.
        shared: (mantissas, exponents) ``[T]`` of the shared expert's weight, or None without a shared expert.
    """

    experts: np.ndarray
    mantissas: np.ndarray
    exponents: np.ndarray
    shared: tuple[np.ndarray, np.ndarray] | None


def top_k(acc: ArrayLike, count: int) -> np.ndarray:
    """Indices of the ``count`` largest along the last axis, descending, ties to the lower index."""
    return np.argsort(-np.asarray(acc, np.int64), axis=-1, kind="stable")[..., :count]


def scaled(d: ArrayLike, left: ArrayLike, bits: int) -> np.ndarray:
    """``d * 2**left`` of non-negative numbers, rounded down and limited to ``bits`` bits."""
    d, left = np.broadcast_arrays(np.asarray(d, np.int64), np.asarray(left, np.int64))
    largest = (1 << bits) - 1
    down = d >> np.clip(-left, 0, 63)
    large = (left > 0) & (d > largest >> np.clip(left, 0, 63))
    return np.where(large, largest, np.minimum(down << np.where(large, 0, np.clip(left, 0, bits)), largest))


def fixed(acc: ArrayLike, a: ArrayLike) -> np.ndarray:
    """Magnitudes of accumulators ``acc * 2**a`` in units of 2^-28, at most 40 bits: v."""
    return scaled(np.abs(np.asarray(acc, np.int64)), np.asarray(a, np.int64) + 28, 40)


def curve(of: Curve, v: ArrayLike) -> np.ndarray:
    """A curve at non-negative numbers in units of 2^-28, in units of 2^-30; one beyond its pieces."""
    v = np.asarray(v, np.int64)
    beyond = v >= 1 << 28 + of.parts - 1
    v = np.where(beyond, 0, v)
    octave = bit_length(v >> 29)
    w = v >> octave
    index, rest = OCTAVE_PIECES * (of.base + octave) + (w >> 21), w & (1 << 21) - 1
    slope = CURVE_SLOPES[index] - ((CURVE_BENDS[index] * (rest >> 10) + (1 << 11)) >> 12)
    value = CURVE_VALUES[index] + ((slope * rest) >> (16 + 2 * CURVE_FINE[index]))
    return np.where(beyond, UNIT, value << (octave + 1 >> 1 if of.halved else 0))


def sigmoid(acc: ArrayLike, a: ArrayLike) -> np.ndarray:
    """Sigmoid of accumulators ``acc * 2**a`` in units of 2^-30."""
    value = curve(SIGMOID, fixed(acc, a))
    return np.where(np.asarray(acc) < 0, UNIT - value, value)


def root_of_softplus(acc: ArrayLike, a: ArrayLike) -> np.ndarray:
    """``sqrt(log(1 + exp(acc * 2**a)))`` in units of 2^-30."""
    v = fixed(acc, a)
    return np.where(np.asarray(acc) < 0, UNIT - curve(ROOT_BELOW, v), curve(ROOT_ABOVE, v))


def exponential(d: ArrayLike, a: ArrayLike, lse: ArrayLike = 0) -> np.ndarray:
    """``exp(-d * 2**a - lse)`` of non-negative accumulator differences in units of 2^-30."""
    return UNIT - curve(EXPONENTIAL, fixed(d, a) + lse)


def log_sum(exponentials: np.ndarray) -> np.ndarray:
    """Logarithm, in units of 2^-28, of the sums ``[T, 1]`` of exponentials ``[T, E]`` of which one is that of 0."""
    total = exponentials.sum(axis=1, keepdims=True)
    halvings = bit_length(total) - 31
    return (halvings * LN_2 + curve(LOGARITHM, (total >> halvings) - UNIT >> 2) + 2) >> 2


def scores(logits: np.ndarray, a: np.ndarray, rules: Rules, peak: np.ndarray, lse: ArrayLike) -> np.ndarray:
    """Scores of accumulators in units of 2^-30; ``peak`` and ``lse`` are those of a softmax."""
    if SCORES[rules.score] == "softmax":
        return exponential(peak - logits, a, lse)
    return (sigmoid if SCORES[rules.score] == "sigmoid" else root_of_softplus)(logits, a)


def terms(q: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores normalised to 18 bits: (y, n), for ``y * 2**(-11 - n)``."""
    q = np.asarray(q, np.int64)
    n = 37 - bit_length(q)
    return (q << n) >> 19, n


def divide(y: ArrayLike, n: ArrayLike, total: ArrayLike, scale: int = ONE) -> tuple[np.ndarray, np.ndarray]:
    """Weight of a term ``(y, n)`` in a ``total`` of units of 2^-30, times a scale: (mantissa, exponent)."""
    mantissa, exponent = norm16(total, 0)
    scale_exponent = ((scale >> 16) + 2048) % 4096 - 2048
    reciprocal = ((scale & 0xFFFF) << 16) // mantissa
    return norm16(np.asarray(y, np.int64) * reciprocal, scale_exponent + 3 - np.asarray(n, np.int64) - exponent)


def keys(logits: np.ndarray, a: np.ndarray, rules: Rules, q: np.ndarray, table: np.ndarray) -> np.ndarray:
    """What experts with scores ``q`` are chosen by, ``[T, E]``."""
    if rules.correction == 0:
        return logits
    return (q if rules.correction == 1 else 4 * np.sign(logits) * fixed(logits, a)) + (table << rules.correction_shift)


def in_groups(key: np.ndarray, rules: Rules) -> np.ndarray:
    """The keys ``[T, E]`` after those of the groups that are not kept have lost theirs."""
    if rules.group_size == 0:
        return key
    ranked = np.sort(key.reshape(len(key), rules.experts // rules.group_size, rules.group_size), axis=-1)
    of_group = ranked[..., -1] + (ranked[..., -2] if rules.group_sum else 0)
    kept = np.zeros(of_group.shape, bool)
    np.put_along_axis(kept, top_k(of_group, rules.kept_groups), True, axis=1)
    return np.where(kept.repeat(rules.group_size, axis=1), key, 0 if rules.group_zero else _NEVER)


def route(acc: ArrayLike, a: ArrayLike, rules: Rules, table: ArrayLike = 0) -> Routes:
    """Choices and weights from router accumulators.

    Parameters:
        acc: ``[T, rows]``; rows beyond the experts (the shared expert's gate, padding) are not chosen from.
        a: ``[T]``, exponents of the accumulators.
        table: the correction table, ``[E]``.
    """
    acc, a = np.asarray(acc, np.int64), np.asarray(a, np.int64)[:, None]
    logits = acc[:, : rules.experts]
    peak, lse = logits.max(axis=1, keepdims=True), np.zeros(a.shape, np.int64)
    if SCORES[rules.score] == "softmax" and (not rules.normalise or rules.correction):
        lse = log_sum(exponential(peak - logits, a))
    q = scores(logits, a, rules, peak, lse)
    key = keys(logits, a, rules, q, np.asarray(table, np.int64))
    chosen = top_k(in_groups(key, rules), rules.top_k)
    q = np.take_along_axis(q, chosen, 1)
    total = rules.epsilon + q.sum(axis=1, keepdims=True) if rules.normalise else np.full(a.shape, UNIT)
    mantissas, exponents = divide(*terms(q), total, rules.scale)
    shared_weight = None
    if rules.shared_gate:
        shared_weight = shared_gate(acc[:, rules.experts], a[:, 0])
    elif rules.shared_blocks:
        shared_weight = (np.full(len(acc), 1 << 15), np.full(len(acc), -15))
    return Routes(chosen, mantissas, exponents, shared_weight)


def given_routes(spec: LayerSpec, tokens: int, given: GivenRoutes) -> Routes:
    """Routes that come with the call.

    Raises:
        InputError: they are not routes of ``tokens`` tokens of such a layer.
    """
    experts, weights = given.rounded(spec, tokens)
    fraction, exponent = np.frexp(weights)
    mantissas = np.ldexp(fraction, 16).astype(np.int64)
    exponents = np.where(mantissas == 0, EXP_MIN, exponent.astype(np.int64) - 16)
    shared = (mantissas[:, -1], exponents[:, -1]) if spec.shared is not None else None
    top_k = spec.router.top_k
    return Routes(experts[:, :top_k], mantissas[:, :top_k], exponents[:, :top_k], shared)


def shared_gate(acc: ArrayLike, a: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Sigmoid of accumulators ``acc * 2**a``: (mantissa, exponent)."""
    return divide(*terms(sigmoid(acc, a)), UNIT)
