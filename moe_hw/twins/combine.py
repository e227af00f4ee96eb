"""Weighting, combining and float output, twin of ``rtl_gen/combine.py``."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moe_hw.arch import ACC_BITS
from moe_hw.twins.arith import MAX_SHIFT, bit_length, norm16, rshift

WORD_MAX = (1 << ACC_BITS - 1) - 1
"""Largest combine word; sums saturate at it and at its negative."""

_FLOAT_MAX = float(np.finfo(np.float32).max)
_FLOAT_TINY = float(np.finfo(np.float32).tiny)


def contribution(
    d: ArrayLike, a_down: ArrayLike, weight: ArrayLike, weight_exponent: ArrayLike, k: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """What a down accumulator adds to its combine word.

    Parameters:
        d: accumulators, 48 bits signed, with exponent ``a_down``.
        weight: signed mantissa of the routing weight, with exponent ``weight_exponent``.
        k: exponent of the token's combine words.

    Returns:
        (value, overflow): values in [-WORD_MAX, WORD_MAX], and where they saturated.
    """
    d, weight = np.asarray(d, np.int64), np.asarray(weight, np.int64)
    mantissa, exponent = norm16(np.abs(d), a_down)
    product = mantissa * np.abs(weight)
    right = np.minimum(MAX_SHIFT, np.asarray(k, np.int64) - exponent - weight_exponent + 15)
    overflow = (right < 0) & (product > 0)
    magnitude = np.where(overflow, WORD_MAX, rshift(product << 15, np.maximum(right, 0)))
    saturated = magnitude > WORD_MAX
    magnitude = np.where(saturated, WORD_MAX, magnitude)
    return np.where((d < 0) ^ (weight < 0), -magnitude, magnitude), overflow | saturated


def add(word: ArrayLike, value: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Sum of a combine word and a contribution: (sum, overflow), saturated as ``contribution``."""
    total = np.asarray(word, np.int64) + np.asarray(value, np.int64)
    return np.clip(total, -WORD_MAX, WORD_MAX), np.abs(total) > WORD_MAX


def to_float32(word: ArrayLike, exponent: ArrayLike) -> np.ndarray:
    """``word * 2**exponent`` as float32: half to even at 24 bits, no subnormal numbers, no infinity."""
    word = np.asarray(word, np.int64)
    magnitude = np.abs(word)
    drop = np.maximum(bit_length(magnitude) - 24, 0)
    kept = magnitude >> drop
    twice_rest = (magnitude - (kept << drop)) << 1
    kept = kept + ((twice_rest > (1 << drop)) | ((twice_rest == (1 << drop)) & (kept & 1 == 1)))
    value = np.ldexp(kept.astype(np.float64), np.clip(drop + exponent, -1000, 900).astype(np.int64))
    value = np.where(value < _FLOAT_TINY, 0.0, np.minimum(value, _FLOAT_MAX))
    return np.where((word < 0) & (value > 0), -value, value).astype(np.float32)


def weight_to_float32(mantissa: ArrayLike, exponent: ArrayLike) -> np.ndarray:
    """A routing weight ``mantissa * 2**exponent`` as float32: exact, or 0 below the smallest normal number."""
    return to_float32(mantissa, exponent)
