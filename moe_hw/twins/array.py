"""The array and its scale-accumulators, twin of ``rtl_gen/array.py`` and ``rtl_gen/accumulate.py``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from moe_hw.arch import PLANES_PER_PASS
from moe_hw.formats import QuantisedMatrix, Tokens

_CHUNK = 1 << 22
"""Products (row, block, vector) that are in memory at a time."""


class Operand(NamedTuple):
    """Vectors of blocks as the array multiplies them.

    Attributes:
        slices: int8 ``[T, blocks, 32]`` each: (hi, lo) in the router, else the int8 mantissas alone.
        exponents: ``[T, blocks]``.
    """

    slices: tuple[np.ndarray, ...]
    exponents: np.ndarray

    @property
    def exponent(self) -> np.ndarray:
        """E of each vector, int64 ``[T]``."""
        return self.exponents.max(axis=1).astype(np.int64)


def router_operand(tokens: Tokens) -> Operand:
    """Both halves of the tokens' mantissas."""
    return Operand((tokens.hi, tokens.lo), tokens.exponents)


def expert_operand(tokens: Tokens) -> Operand:
    """The upper half of the tokens' mantissas; ``8 + S`` in the descriptor's exponents stands for the lower one."""
    return Operand((tokens.hi,), tokens.exponents)


def weight_slices(codes: np.ndarray, passes: int) -> list[np.ndarray]:
    """Slices of 4 bits, the most significant first; it is signed, the others are not."""
    shifts = [PLANES_PER_PASS * (passes - 1 - number) for number in range(passes)]
    return [codes >> shift if number == 0 else codes >> shift & 15 for number, shift in enumerate(shifts)]


def accumulate(matrix: QuantisedMatrix, operand: Operand) -> np.ndarray:
    """Accumulators of every vector and row.

    Returns:
        int64 ``[T, N]``; one unit is worth ``2**(E + S - matrix.shift)``, and 2^8 times that if the operand is the
        upper half of tokens.
    """
    blocks, rows = matrix.blocks, matrix.rows
    vectors = [torch.from_numpy(part).float().permute(1, 2, 0) for part in operand.slices]
    distance = operand.exponent[:, None] - operand.exponents
    vector_scale = torch.from_numpy(np.ldexp(1.0, -distance).T[:, None, :].copy())
    count = len(operand.exponents)
    acc = torch.empty(count, rows, dtype=torch.int64)
    step = max(1, _CHUNK // max(1, blocks * count))
    for first in range(0, rows, step):
        part = slice(first, first + step)
        exponents = matrix.shift - matrix.f[part].astype(np.int64)
        row_scale = torch.from_numpy(np.ldexp(32.0 + matrix.frac[part], exponents - 2).T[..., None].copy())
        total = torch.zeros(row_scale.shape[1], count, dtype=torch.float64)
        for i, codes in enumerate(weight_slices(matrix.codes[part], matrix.format.passes)):
            weights = torch.from_numpy(codes).view(-1, blocks, 32).permute(1, 0, 2).float()
            for j, vector in enumerate(vectors):
                left = PLANES_PER_PASS * (matrix.format.passes - 1 - i) + 8 * (len(vectors) - 1 - j)
                # Below 2^24 a float32 dot product is exact. Adding a half and rounding down in float64 is the exact
                # rshift: no product has more than 48 significant bits before the rounding.
                product = torch.bmm(weights, vector).double()
                product.mul_(row_scale * 2.0**left).mul_(vector_scale).add_(0.5).floor_()
                total += product.sum(dim=0)
        acc[:, part] = total.T.long()
    return acc.numpy()
