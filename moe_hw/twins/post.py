"""SwiGLU and re-quantising to blocks, twin of ``rtl_gen/post.py`` and ``rtl_gen/requant.py``."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moe_hw.arch import EXP_MIN, EXP_ZERO, ROWS
from moe_hw.tables import SIGMOID_STEPS, SIGMOID_VALUES
from moe_hw.twins.arith import MAX_SHIFT, norm16, rshift


def sigmoid(mantissa: ArrayLike, exponent: ArrayLike) -> np.ndarray:
    """Sigmoid of ``mantissa * 2**exponent`` >= 0 as a fraction of 2^16."""
    mantissa, exponent = np.asarray(mantissa, np.int64), np.asarray(exponent, np.int64)
    right = -(exponent + 14)
    z = np.where(right > 15, 0, (mantissa << np.clip(-right, 0, 2)) >> np.clip(right, 0, 15))
    beyond = (right < -2) | (z >= 1 << 18)
    z = np.where(beyond, 0, z)
    index, rest = z >> 9, z & 511
    value = 32768 + SIGMOID_VALUES[index] + ((SIGMOID_STEPS[index] * rest + 256) >> 9)
    return np.where(beyond, 1 << 16, value)


def swiglu(g: ArrayLike, u: ArrayLike, a_g: ArrayLike, a_u: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``g * sigmoid(g) * u`` of accumulators ``g * 2**a_g`` and ``u * 2**a_u``.

    Returns:
        (sign, mantissa, exponent): sign is 0 or 1, mantissa 0 or in [2^15, 2^16).
    """
    g, u = np.asarray(g, np.int64), np.asarray(u, np.int64)
    gate_mantissa, gate_exponent = norm16(np.abs(g), a_g)
    up_mantissa, up_exponent = norm16(np.abs(u), a_u)
    s = sigmoid(gate_mantissa, gate_exponent)
    s = np.where(g < 0, (1 << 16) - s, s)
    product, exponent = norm16(gate_mantissa * up_mantissa, gate_exponent + up_exponent)
    mantissa, exponent = norm16(product * s, exponent - 16)
    return ((g < 0) ^ (u < 0)).astype(np.int64), mantissa, exponent


def requantise(sign: ArrayLike, mantissa: ArrayLike, exponent: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 32 int8 mantissas from hidden activations ``[..., 32 * blocks]``.

    Returns:
        (mantissas, exponents): int8 ``[..., blocks, 32]`` and int64 ``[..., blocks]``.
    """
    *outer, size = np.shape(mantissa)
    sign, mantissa, exponent = (np.reshape(v, (*outer, size // ROWS, ROWS)) for v in (sign, mantissa, exponent))
    largest = np.where(mantissa > 0, exponent, EXP_MIN).max(axis=-1)
    distance = np.where(mantissa > 0, largest[..., None] - exponent, 0)
    magnitude = np.minimum(127, rshift(mantissa, np.minimum(MAX_SHIFT, 9 + distance)))
    empty = ~(mantissa > 0).any(axis=-1)
    return np.where(sign == 1, -magnitude, magnitude).astype(np.int8), np.where(empty, EXP_ZERO, largest + 9)
