"""The tables of ``docs/numerics.md``, exponential and sigmoid in linear pieces, for RTL and golden model alike."""

from __future__ import annotations

import numpy as np

LOG2_E = 189097
"""``round(log2(e) * 2^17)``."""

EXP_VALUES = np.rint(2.0 ** (17 - np.arange(257) / 256)).astype(np.int64)
"""T of the exponential, int64 ``[257]``: ``round(2^(17 - i / 256))``, in units of 2^-17."""

EXP_STEPS = -np.diff(EXP_VALUES)
"""G of the exponential, int64 ``[256]``: ``T[i] - T[i + 1]``, how much a piece falls."""

SIGMOID_VALUES = np.rint(2**16 / (1 + np.exp(-np.arange(513) / 32))).astype(np.int64) - 32768
"""V of the sigmoid, int64 ``[513]``: ``round(2^16 * sigmoid(i / 32)) - 32768``, in units of 2^-16."""

SIGMOID_STEPS = np.diff(SIGMOID_VALUES)
"""W of the sigmoid, int64 ``[512]``: ``V[i + 1] - V[i]``, how much a piece rises."""
