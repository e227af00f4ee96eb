"""Choosing experts and weighting them, twin of ``rtl_gen/router.py`` and the blocks in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moe_hw.arch import EXP_MIN
from moe_hw.registers import ONE
from moe_hw.routes import GivenRoutes
from moe_hw.spec import LayerSpec
from moe_hw.tables import EXP_STEPS, EXP_VALUES, LOG2_E, SIGMOID_BENDS, SIGMOID_SLOPES, SIGMOID_VALUES
from moe_hw.twins.arith import bit_length, norm16

_NEVER = -(1 << 62)
"""Below any key."""


class Rules(NamedTuple):
    """How logits become routes: words of the layer descriptor, of the same names."""

    experts: int
    top_k: int
    normalise: int = 1
    sigmoid: int = 0
    correction: int = 0
    correction_shift: int = 0
    group_size: int = 0
    kept_groups: int = 0
    group_sum: int = 0
    group_zero: int = 0
    epsilon: int = 0
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


def exponential(d: ArrayLike, a: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """``exp(-d * 2**a)`` of non-negative accumulator differences: (y, n), for ``y * 2**(-17 - n)``."""
    t = (scaled(d, np.asarray(a, np.int64) + 20, 26) * LOG2_E) >> 17
    index, rest = (t >> 12) & 255, t & 4095
    return EXP_VALUES[index] - ((EXP_STEPS[index] * rest + 2048) >> 12), t >> 20


def fixed(acc: ArrayLike, a: ArrayLike) -> np.ndarray:
    """Accumulators ``acc * 2**a`` in units of 2^-28, at most 40 bits: z."""
    acc = np.asarray(acc, np.int64)
    return np.sign(acc) * scaled(np.abs(acc), np.asarray(a, np.int64) + 28, 40)


def sigmoid(z: ArrayLike) -> np.ndarray:
    """Sigmoid of numbers in units of 2^-28, in the same units."""
    z = np.asarray(z, np.int64)
    v = np.abs(z)
    far, one = v >> 31 > 0, v >= 24 << 28
    w = np.where(one, 0, v >> far)
    index, rest = (w >> 22) + 256 * far * ~one, w & (1 << 22) - 1
    slope = SIGMOID_SLOPES[index] - ((SIGMOID_BENDS[index] * (rest >> 11) + 2048) >> 12)
    s = np.where(one, 1 << 28, (SIGMOID_VALUES[index] + ((slope * rest) >> 18) + 2) >> 2)
    return np.where(z < 0, (1 << 28) - s, s)


def fraction(y: ArrayLike, n: ArrayLike) -> np.ndarray:
    """An exponential as a fraction of 2^32."""
    y, n = np.asarray(y, np.int64), np.asarray(n, np.int64)
    return np.where(n > 31, 0, (y << 14) >> np.minimum(n, 31))


def divide(y: ArrayLike, n: ArrayLike, total: ArrayLike, scale: int = ONE) -> tuple[np.ndarray, np.ndarray]:
    """Weight of a term ``(y, n)`` in a ``total`` of fractions of 2^32, times a scale: (mantissa, exponent)."""
    mantissa, exponent = norm16(total, 0)
    scale_exponent = ((scale >> 16) + 2048) % 4096 - 2048
    reciprocal = ((scale & 0xFFFF) << 16) // mantissa
    return norm16(np.asarray(y, np.int64) * reciprocal, scale_exponent + 29 - np.asarray(n, np.int64) - 31 - exponent)


def keys(logits: np.ndarray, a: np.ndarray, rules: Rules, table: np.ndarray) -> np.ndarray:
    """What experts are chosen by, ``[T, E]``."""
    if rules.correction == 0:
        return logits
    z = fixed(logits, a)
    return (sigmoid(z) if rules.correction == 1 else z) + (table << rules.correction_shift)


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
    chosen = top_k(in_groups(keys(logits, a, rules, np.asarray(table, np.int64)), rules), rules.top_k)
    if rules.sigmoid:
        q = sigmoid(fixed(np.take_along_axis(logits, chosen, 1), a))
        n = 29 - bit_length(q)
        y = (q << n) >> 11
        total = rules.epsilon + (8 * q).sum(axis=1, keepdims=True) if rules.normalise else np.full(a.shape, 1 << 31)
    else:
        y, n = exponential(np.take_along_axis(logits, chosen[:, :1], 1) - logits, a)
        q = fraction(y, n)
        y, n = np.take_along_axis(y, chosen, 1), np.take_along_axis(n, chosen, 1)
        total = (np.take_along_axis(q, chosen, 1) if rules.normalise else q).sum(axis=1, keepdims=True)
    mantissas, exponents = divide(y, n, total, rules.scale)
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
    acc = np.asarray(acc, np.int64)
    y, n = exponential(np.abs(acc), a)
    total = (1 << 31) + fraction(y, n)
    positive = acc >= 0
    return divide(np.where(positive, 1 << 17, y), np.where(positive, 0, n), total)
