"""Choosing experts and weighting them, twin of ``rtl_gen/router.py`` and the blocks in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moe_hw.arch import EXP_MIN
from moe_hw.routes import GivenRoutes
from moe_hw.spec import LayerSpec
from moe_hw.tables import EXP_STEPS, EXP_VALUES, LOG2_E
from moe_hw.twins.arith import norm16

_LARGEST = (1 << 26) - 1


class Routes(NamedTuple):
    """Choices for T tokens; weights are ``mantissas * 2**exponents``.

    Attributes:
        experts: int64 ``[T, K]``, in descending order of the logits; given ones in any order, -1 for none.
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


def exponential(d: ArrayLike, a: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """``exp(-d * 2**a)`` of non-negative accumulator differences: (y, n), for ``y * 2**(-17 - n)``."""
    d, left = np.broadcast_arrays(np.asarray(d, np.int64), np.asarray(a, np.int64) + 20)
    down = d >> np.clip(-left, 0, 63)
    large = (left > 0) & (d > _LARGEST >> np.clip(left, 0, 63))
    scaled = np.where(large, _LARGEST, np.minimum(down << np.where(large, 0, np.clip(left, 0, 26)), _LARGEST))
    t = (scaled * LOG2_E) >> 17
    index, rest = (t >> 12) & 255, t & 4095
    return EXP_VALUES[index] - ((EXP_STEPS[index] * rest + 2048) >> 12), t >> 20


def fraction(y: ArrayLike, n: ArrayLike) -> np.ndarray:
    """An exponential as a fraction of 2^32."""
    y, n = np.asarray(y, np.int64), np.asarray(n, np.int64)
    return np.where(n > 31, 0, (y << 14) >> np.minimum(n, 31))


def divide(y: ArrayLike, n: ArrayLike, total: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Weight of an exponential ``(y, n)`` in a ``total`` of fractions of 2^32: (mantissa, exponent)."""
    mantissa, exponent = norm16(total, 0)
    return norm16(np.asarray(y, np.int64) * ((1 << 31) // mantissa), 14 - np.asarray(n, np.int64) - 31 - exponent)


def route(
    acc: ArrayLike, a: ArrayLike, top_k_count: int, normalise: bool, experts: int, shared: str | None = None
) -> Routes:
    """Choices and weights from router accumulators.

    Parameters:
        acc: ``[T, rows]``; rows beyond ``experts`` (the shared expert's gate, padding) are not chosen from.
        a: ``[T]``, exponents of the accumulators.
        top_k_count: experts chosen for a token.
        normalise: softmax over the chosen experts, instead of over all of them.
        experts: routed experts.
        shared: None without a shared expert, ``"one"`` for one of weight one, ``"gate"`` for one whose weight is
            the sigmoid of row ``experts``.
    """
    acc, a = np.asarray(acc, np.int64), np.asarray(a, np.int64)[:, None]
    logits = acc[:, :experts]
    chosen = top_k(logits, top_k_count)
    y, n = exponential(np.take_along_axis(logits, chosen[:, :1], 1) - logits, a)
    q = fraction(y, n)
    y, n = np.take_along_axis(y, chosen, 1), np.take_along_axis(n, chosen, 1)
    total = (np.take_along_axis(q, chosen, 1) if normalise else q).sum(axis=1, keepdims=True)
    mantissas, exponents = divide(y, n, total)
    shared_weight = None
    if shared == "one":
        shared_weight = (np.full(len(acc), 1 << 15), np.full(len(acc), -15))
    elif shared == "gate":
        shared_weight = shared_gate(acc[:, experts], a[:, 0])
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
