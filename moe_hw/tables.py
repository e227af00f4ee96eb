"""The tables of ``docs/numerics.md``, functions in linear or quadratic pieces, for RTL and golden model alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

GATES: dict[str, Callable[[float], float]] = {
    "silu": lambda g: 1 / (1 + math.exp(-g)),
    "gelu_tanh": lambda g: (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) / 2,
    "gelu": lambda g: (1 + math.erf(g / math.sqrt(2))) / 2,
    "quick_gelu": lambda g: 1 / (1 + math.exp(-1.702 * g)),
    "relu": lambda g: float(g > 0),
}
"""s of every activation ``g * s(g)``, in the order of their numbers; the last one has no table."""

RELU = tuple(GATES).index("relu")
"""Number of the activation that has no table."""

GATE_VALUES = np.array(
    [[round(2**16 * gate(i / 32)) - 32768 for i in range(513)] for name, gate in GATES.items() if name != "relu"]
)
"""V of each activation, int64 ``[4, 513]``: ``round(2^16 * s(i / 32)) - 32768``, in units of 2^-16."""

GATE_STEPS = np.diff(GATE_VALUES)
"""W of each activation, int64 ``[4, 512]``: ``V[i + 1] - V[i]``, how much a piece rises."""

_CAP_POINTS = np.arange(1, 513) / 64
CAP_FALLS = np.rint(2**16 * np.append(0.0, 1 - np.tanh(_CAP_POINTS) / _CAP_POINTS)).astype(np.int64)
"""F of the softcap, int64 ``[513]``: ``round(2^16 * (1 - tanh(y) / y))`` at ``y = i / 64``."""

CAP_STEPS = np.diff(CAP_FALLS)
"""D of the softcap, int64 ``[512]``: ``F[i + 1] - F[i]``."""

CURVE_PIECES = 4096
"""Pieces of all curves of the router's scores together."""

OCTAVE_PIECES = 128
"""Pieces of an octave of a curve, and of the part below 1."""

LN_2 = round(math.log(2) * 2**30)
"""log(2) in units of 2^-30."""


class Curve(NamedTuple):
    """A rising function of a number from 0.

    Attributes:
        base: its first piece is number ``OCTAVE_PIECES * base``.
        parts: multiples of ``OCTAVE_PIECES`` pieces that it has: below 1, then octave by octave.
        of: the function.
        halved: its values are halved with every second octave from 2.
    """

    base: int
    parts: int
    of: Callable[[np.ndarray], np.ndarray]
    halved: bool = False


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0.0, x))


SIGMOID = Curve(0, 6, lambda v: 1 / (1 + np.exp(-v)))
EXPONENTIAL = Curve(6, 6, lambda v: -np.expm1(-v))
ROOT_BELOW = Curve(12, 6, lambda v: 1 - np.sqrt(_softplus(-v)))
ROOT_ABOVE = Curve(18, 13, lambda v: np.sqrt(_softplus(v)), halved=True)
LOGARITHM = Curve(31, 1, np.log1p)
"""The curves of section 4 of ``docs/numerics.md``; together they have ``CURVE_PIECES``."""


def _chord(f: Callable[[np.ndarray], np.ndarray], width: float) -> np.ndarray:
    """Slope of ``f`` in each piece between the two Chebyshev nodes."""
    low, high = (width * (1 - sign * math.sqrt(0.5)) / 2 for sign in (1, -1))
    return (f(np.asarray(high)) - f(np.asarray(low))) / (high - low)


def _pieces(curve: Curve) -> np.ndarray:
    """Coefficients of ``B0 + B1 x - B2 x^2``, x from 0 to 1/128, and F: int64 ``[4, pieces]``."""
    width = 1 / OCTAVE_PIECES
    number = np.arange(OCTAVE_PIECES * curve.parts)
    octave = np.maximum(number // OCTAVE_PIECES - 1, 0)
    left = number * width - octave
    factor = 2.0 ** -((octave + 1) // 2 * curve.halved)

    def value(x: np.ndarray) -> np.ndarray:
        return curve.of((left + x) * 2.0**octave) * factor

    low, middle, high = (width * (1 - math.cos(math.pi * k / 6)) / 2 for k in (1, 3, 5))
    below, at, above = (value(np.asarray(x)) for x in (low, middle, high))
    bend = ((at - below) / (middle - low) - (above - at) / (high - middle)) / (high - low)
    slope = _chord(lambda x: value(x) + bend * x**2, width)
    steepest = np.maximum(slope, slope - bend * width)
    fits = [(steepest * 4.0**f < 1 - 2**-12) & (np.abs(bend) * 4.0**f < 1 - 2**-12) for f in range(1, 4)]
    fine = np.sum(np.cumprod(fits, axis=0), axis=0)

    bends = np.rint(bend * 2**12 * 4.0**fine)
    kept = bends / 2**12 / 4.0**fine
    slopes = np.rint(_chord(lambda x: value(x) + kept * x**2, width) * 2**18 * 4.0**fine)
    slopes = np.clip(slopes, 0, 2**18 - 1)
    x = np.linspace(0, width, 65)[:, None]
    rest = value(x) - (slopes / 2**18 / 4.0**fine - kept * x) * x
    values = np.rint((rest.min(axis=0) + rest.max(axis=0)) / 2 * 2**30)
    if curve in (SIGMOID, EXPONENTIAL):
        values[0] = np.rint(curve.of(np.asarray(0.0)) * 2**30)  # exactly: a logit that is rounded to 0 has no sign
    return np.stack((values, slopes, bends, fine)).astype(np.int64)


CURVE_VALUES, CURVE_SLOPES, CURVE_BENDS, CURVE_FINE = np.concatenate(
    [_pieces(curve) for curve in (SIGMOID, EXPONENTIAL, ROOT_BELOW, ROOT_ABOVE, LOGARITHM)], axis=1
)
"""B0, B1, B2 and F of all curves, int64 ``[CURVE_PIECES]`` each."""
