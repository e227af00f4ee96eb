"""Activation functions and re-quantising to blocks, twin of ``rtl_gen/post.py``, ``softcap.py`` and ``requant.py``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moe_hw.arch import EXP_BITS, EXP_MIN, EXP_ZERO, ROWS
from moe_hw.registers import NO_CAP, NO_LIMIT
from moe_hw.tables import CAP_FALLS, CAP_STEPS, GATE_STEPS, GATE_VALUES, RELU
from moe_hw.twins.arith import MAX_SHIFT, norm16, rshift

Float = tuple[np.ndarray, np.ndarray]
"""Mantissas, 0 or in [2^15, 2^16), and exponents."""


class Form(NamedTuple):
    """How accumulators become hidden activations: words of the layer descriptor, of the same names."""

    activation: int = 0
    gated: int = 1
    square: int = 0
    gate_limit: int = NO_LIMIT
    up_limit: int = NO_LIMIT
    up_lower_limit: int = NO_LIMIT
    softcap: int = 0
    gate_cap: int = 0
    gate_cap_inverse: int = NO_CAP
    up_cap: int = 0
    up_cap_inverse: int = NO_CAP


def gate_factor(activation: int, mantissa: ArrayLike, exponent: ArrayLike) -> np.ndarray:
    """``s`` of ``mantissa * 2**exponent`` >= 0 as a fraction of 2^16."""
    mantissa, exponent = np.asarray(mantissa, np.int64), np.asarray(exponent, np.int64)
    right = -(exponent + 14)
    z = np.where(right > 15, 0, (mantissa << np.clip(-right, 0, 2)) >> np.clip(right, 0, 15))
    beyond = (right < -2) | (z >= 1 << 18) | (activation == RELU)
    z = np.where(beyond, 0, z)
    index, rest = z >> 9, z & 511
    table = activation % len(GATE_VALUES)
    value = 32768 + GATE_VALUES[table][index] + ((GATE_STEPS[table][index] * rest + 256) >> 9)
    return np.where(beyond, 1 << 16, value)


def number(word: int) -> tuple[int, int]:
    """Mantissa and exponent of a number of the layer descriptor."""
    exponent = word >> 16 & (1 << EXP_BITS) - 1
    return word & 0xFFFF, exponent - (exponent >> EXP_BITS - 1 << EXP_BITS)


def limited(value: Float, word: int, applies: np.ndarray) -> Float:
    """Magnitudes of at most the limit of a descriptor's word, where it applies."""
    mantissa, exponent = value
    most, most_exponent = number(word)
    beyond = applies & ((exponent > most_exponent) | ((exponent == most_exponent) & (mantissa > most)))
    return np.where(beyond, most, mantissa), np.where(beyond, most_exponent, exponent)


def softcapped(value: Float, cap: int, inverse: int) -> Float:
    """Magnitudes ``c * tanh(x / c)`` of words that hold ``c`` and ``1 / c``."""
    mantissa, exponent = value
    inverse_mantissa, inverse_exponent = number(inverse)
    right = -(exponent + inverse_exponent + 27)
    z = (mantissa * inverse_mantissa >> 12) >> np.clip(right, 0, 31)
    beyond = (right < 0) | (z >= 1 << 18)
    z = np.where(beyond, 0, z)
    index, rest = z >> 9, z & 511
    t = (1 << 16) - CAP_FALLS[index] - ((CAP_STEPS[index] * rest + 256) >> 9)
    capped, capped_exponent = norm16(mantissa * t, exponent - 16)
    most, most_exponent = number(cap)
    return np.where(beyond, most, capped), np.where(beyond, most_exponent, capped_exponent)


def activate(
    g: ArrayLike, u: ArrayLike, a_g: ArrayLike, a_u: ArrayLike, form: Form
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``g * s(g) * u`` of accumulators ``g * 2**a_g`` and ``u * 2**a_u``; ``u`` does not count if it is not gated.

    Returns:
        (sign, mantissa, exponent): sign is 0 or 1, mantissa 0 or in [2^15, 2^16).
    """
    g, u = np.asarray(g, np.int64), np.asarray(u, np.int64)
    gate = limited(norm16(np.abs(g), a_g), form.gate_limit, g > 0)
    if form.gated:
        up = limited(norm16(np.abs(u), a_u), form.up_limit, u > 0)
        up = limited(up, form.up_lower_limit, u < 0)
    else:
        u = g if form.square else np.ones_like(g)
        up = gate if form.square else (np.full_like(g, 1 << 15), np.full_like(g, -15))
    s = gate_factor(form.activation, *gate)
    s = np.where(g < 0, (1 << 16) - s, s)
    if form.softcap:
        gate = softcapped(gate, form.gate_cap, form.gate_cap_inverse)
        up = softcapped(up, form.up_cap, form.up_cap_inverse)
    product, exponent = norm16(gate[0] * up[0], gate[1] + up[1])
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
