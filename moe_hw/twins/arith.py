"""Rounding shifts and 16-bit normalisation, twin of ``rtl_gen/arith.py``."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moe_hw.arch import EXP_MIN

MAX_SHIFT = 63


def rshift(value: ArrayLike, amount: ArrayLike) -> np.ndarray:
    """``value / 2**amount``, rounded half up; amounts are 0 to 63."""
    value, amount = np.asarray(value, np.int64), np.asarray(amount, np.int64)
    return (value >> amount) + np.where(amount > 0, (value >> np.maximum(amount - 1, 0)) & 1, 0)


def bit_length(value: ArrayLike) -> np.ndarray:
    """Position of the highest set bit plus one of values in [0, 2^53); 0 for 0."""
    return np.frexp(np.asarray(value, np.float64))[1].astype(np.int64)


def norm16(value: ArrayLike, exponent: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mantissa of 16 bits and exponent of ``value * 2**exponent``.

    Parameters:
        value: in [0, 2^53).
        exponent: broadcasts with ``value``.

    Returns:
        (mantissa, exponent): mantissas are 0, with exponent ``EXP_MIN``, or in [2^15, 2^16).
    """
    value, exponent = np.broadcast_arrays(np.asarray(value, np.int64), np.asarray(exponent, np.int64))
    drop = bit_length(value) - 16
    mantissa = rshift(value, np.maximum(drop, 0)) << np.maximum(-drop, 0)
    carry = mantissa == 1 << 16
    return np.where(carry, 1 << 15, mantissa), np.where(value == 0, EXP_MIN, exponent + drop + carry)
