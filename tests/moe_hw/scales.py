"""What the byte of a scale stands for, from the table of ``docs/numerics.md``."""

from __future__ import annotations

import numpy as np


def parts(byte: int) -> tuple[int, int]:
    """``frac`` and ``f``."""
    if byte < 128:
        return byte & 31, byte >> 5
    if byte < 192:
        return 2 * (byte & 15), 4 + (byte >> 4 & 3)
    if byte < 224:
        return 4 * (byte & 7), 8 + (byte >> 3 & 3)
    return 0, 12 + (byte & 31)


SCALES = np.array([parts(byte) for byte in range(256)])
"""``frac`` and ``f`` of every byte, ``[256, 2]``; those from 244 on do not occur."""
