"""The tables of ``docs/numerics.md``, exponential and activations in linear pieces, for RTL and golden model alike."""

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
