"""Choices and weights that come with a call, for layers whose router stays on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from moe_hw.errors import InputError
from moe_hw.spec import GIVEN_WEIGHTS, LayerSpec

WEIGHT_BITS = 16
"""Significant bits of a weight in the accelerator."""


@dataclass(frozen=True)
class GivenRoutes:
    """Routes of T tokens.

    Attributes:
        experts: integers ``[T, K]``; -1 where a token has fewer choices. A token chooses an expert at most once.
        weights: floats ``[T, K]``, of magnitudes that sum to at most 64 for each token.
        shared: floats ``[T]``, weights of the shared expert; ones if not given.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    shared: torch.Tensor | None = None

    def rounded(self, spec: LayerSpec, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Experts int64 and weights float32 ``[T, K]``; one more column is of the shared expert if there is one.

        The weights have 16 significant bits; those below float32's smallest normal number are 0.

        Raises:
            InputError: a wrong shape or type, an expert that there is not or twice, a weight that is out of range.
        """
        router = spec.router
        shape = [tokens, router.top_k]
        if list(self.experts.shape) != shape or list(self.weights.shape) != shape or self.experts.is_floating_point():
            raise InputError(
                f"routes: expected integers and floats of shape {shape}, got {self.experts.dtype} "
                f"{list(self.experts.shape)} and {self.weights.dtype} {list(self.weights.shape)}"
            )
        experts = self.experts.detach().cpu().numpy().astype(np.int64)
        weights = self.weights.detach().cpu().double().numpy()
        if (bad := np.argwhere((experts < -1) | (experts >= router.experts))).size:
            token, choice = bad[0]
            found = experts[token, choice]
            raise InputError(f"routes of token {token}: expected experts -1 to {router.experts - 1}, got {found}")
        ordered = np.sort(experts, axis=1)
        if (bad := np.argwhere((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0))).size:
            token, choice = bad[0]
            raise InputError(f"routes of token {token}: expected each expert once, got {ordered[token, choice]} twice")
        if spec.shared is not None:
            shared = torch.ones(tokens) if self.shared is None else self.shared
            if list(shared.shape) != [tokens]:
                raise InputError(f"routes: expected weights of the shared expert [{tokens}], got {list(shared.shape)}")
            experts = np.concatenate((experts, np.full((tokens, 1), router.experts)), axis=1)
            weights = np.concatenate((weights, shared.detach().cpu().double().numpy()[:, None]), axis=1)
        elif self.shared is not None:
            raise InputError("routes: expected no weights of a shared expert, since the layer has none")
        used = np.where(experts >= 0, weights, 0)
        sums = np.abs(used).sum(axis=1)
        if (beyond := np.flatnonzero(~(sums <= GIVEN_WEIGHTS))).size:
            raise InputError(
                f"routes of token {beyond[0]}: expected weights of magnitudes that sum to at most {GIVEN_WEIGHTS:g}, "
                f"got {sums[beyond[0]]:g}"
            )
        return experts, _rounded(used)


def _rounded(weights: np.ndarray) -> np.ndarray:
    """To ``WEIGHT_BITS`` significant bits, half to even, as float32; zero below its smallest normal number."""
    fraction, exponent = np.frexp(weights)
    values = np.ldexp(np.rint(np.ldexp(fraction, WEIGHT_BITS)), exponent - WEIGHT_BITS)
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values).astype(np.float32)
