"""What a layer call returns, whoever computes it: the accelerator, the golden model or the float reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moe_hw.report import Report


@dataclass(frozen=True)
class Result:
    """Outputs of a layer for T tokens.

    Attributes:
        output: float32 ``[T, H]``.
        experts: int64 ``[T, K]``, the routed experts of each token in descending order of their logits.
        weights: float32 ``[T, K]``, their weights.
        report: what the accelerator measured; None for a result that was computed on the host.
    """

    output: torch.Tensor
    experts: torch.Tensor
    weights: torch.Tensor
    report: Report | None = None
