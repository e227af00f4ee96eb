"""The tables of ``docs/numerics.md``, functions in linear or quadratic pieces, for RTL and golden model alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

LOG2_E = 189097
"""``round(log2(e) * 2^17)``."""

EXP_VALUES = np.rint(2.0 ** (17 - np.arange(257) / 256)).astype(np.int64)
"""T of the exponential, int64 ``[257]``: ``round(2^(17 - i / 256))``, in units of 2^-17."""

EXP_STEPS = -np.diff(EXP_VALUES)
"""G of the exponential, int64 ``[256]``: ``T[i] - T[i + 1]``, how much a piece falls."""

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

SIGMOID_PIECES = 1024
"""Pieces of the sigmoid: the first half are 1/64 wide, the others, from 8 to 24, 1/32."""


def _sigmoid_pieces() -> np.ndarray:
    """Coefficients of ``B0 + B1 x - B2 x^2``; x from 0 to 1/64 in each piece, of half the distance in the wide ones."""
    width = 1 / 64
    number = np.arange(SIGMOID_PIECES)
    wide = number >= SIGMOID_PIECES // 2
    left = np.where(wide, number - SIGMOID_PIECES // 4, number) * width

    def sigmoid(x: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(left + x) * (1 + wide)))

    nodes = width * (1 + np.cos(np.pi * np.array([1, 3, 5]) / 6)) / 2
    values = [sigmoid(node) for node in nodes]
    chords = [(values[i + 1] - values[i]) / (nodes[i + 1] - nodes[i]) for i in (0, 1)]
    bend = (chords[1] - chords[0]) / (nodes[2] - nodes[0])
    slope = np.minimum(np.rint((chords[0] - bend * (nodes[0] + nodes[1])) * 2**20), 2**18 - 1)

    squares = width**2 * (1 + np.cos(np.pi * np.array([3, 1]) / 4)) / 2
    rest = [sigmoid(x) - slope / 2**20 * x for x in np.sqrt(squares)]
    fall = np.maximum(np.rint((rest[0] - rest[1]) / (squares[1] - squares[0]) * 2**15), 0)
    first = np.rint((rest[0] + rest[1] + fall / 2**15 * squares.sum()) / 2 * 2**30)
    first[0] = 2**29  # the sigmoid of 0 is one half: a logit that is rounded to 0 has no sign
    return np.stack((first, slope, fall)).astype(np.int64)


SIGMOID_VALUES, SIGMOID_SLOPES, SIGMOID_BENDS = _sigmoid_pieces()
"""B0, B1 and B2 of the sigmoid, int64 ``[1024]`` each, in units of 2^-30, 2^-20 and 2^-15."""
