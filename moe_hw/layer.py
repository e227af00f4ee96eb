"""A MoE layer: its spec and access to its float weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from moe_hw.errors import ModelError
from moe_hw.spec import LayerSpec


class ExpertWeights(NamedTuple):
    """The matrices of one expert: ``gate`` and ``up`` are [I, H], ``down`` is [H, I]."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


class MoELayer:
    """A layer's spec with lazy access to its weights: an expert is read when it is asked for.

    Parameters:
        spec: sizes and semantics.
        router: weight of the router, [E, H].
        expert: reads routed expert ``i``.
        shared: reads the shared expert, if the spec has one.
        shared_gate: weight of the shared expert's gate, [1, H], if it is gated.

    Raises:
        ModelError: a weight has another shape than the spec says, or a weight of the spec is missing.
    """

    def __init__(
        self,
        spec: LayerSpec,
        *,
        router: torch.Tensor,
        expert: Callable[[int], ExpertWeights],
        shared: Callable[[], ExpertWeights] | None = None,
        shared_gate: torch.Tensor | None = None,
    ):
        for name, given, wanted in (
            ("shared expert", shared is not None, spec.shared is not None),
            ("shared expert's gate", shared_gate is not None, spec.shared_gate),
        ):
            if given != wanted:
                raise ModelError(f"{name}: expected {'one' if wanted else 'none'} as in the spec, got the opposite")
        self.spec = spec
        self._router = _checked("router", router, (spec.router.experts, spec.hidden))
        self._expert = expert
        self._shared = shared
        self._shared_gate = None
        if shared_gate is not None:
            self._shared_gate = _checked("shared_expert_gate", shared_gate, (1, spec.hidden))

    @classmethod
    def from_module(cls, block: torch.nn.Module) -> MoELayer:
        """The layer of a transformers MoE block; shares the block's memory.

        Raises:
            UnsupportedLayer: the block is of another class, or has a feature that this version cannot represent.
        """
        from moe_hw.families import read_block

        return read_block(block)

    def router_weight(self) -> torch.Tensor:
        """float32 [E, H]."""
        return self._router.float()

    def shared_gate_weight(self) -> torch.Tensor | None:
        """float32 [1, H], or None if the shared expert has no gate."""
        return None if self._shared_gate is None else self._shared_gate.float()

    def expert(self, index: int) -> ExpertWeights:
        """The float32 matrices of a routed expert."""
        return self._matrices(f"expert {index}", self._expert(index), self.spec.expert.intermediate)

    def shared(self) -> ExpertWeights | None:
        """The float32 matrices of the shared expert, or None if there is none."""
        if self._shared is None or self.spec.shared is None:
            return None
        return self._matrices("shared expert", self._shared(), self.spec.shared.intermediate)

    def _matrices(self, name: str, weights: ExpertWeights, inter: int) -> ExpertWeights:
        up_shape, down_shape = (inter, self.spec.hidden), (self.spec.hidden, inter)
        return ExpertWeights(
            _checked(f"{name} gate", weights.gate, up_shape).float(),
            _checked(f"{name} up", weights.up, up_shape).float(),
            _checked(f"{name} down", weights.down, down_shape).float(),
        )


def random_layer(spec: LayerSpec, seed: int = 0) -> MoELayer:
    """A layer of seeded normal weights that keep a standard normal token's activations of order one.

    Every expert is drawn when it is asked for, always the same, so layers of any size cost no memory.
    """

    def draw(stream: int, rows: int, columns: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + stream)
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    def matrices(number: int, inter: int) -> ExpertWeights:
        first = 2 + 3 * number
        return ExpertWeights(
            draw(first, inter, spec.hidden), draw(first + 1, inter, spec.hidden), draw(first + 2, spec.hidden, inter)
        )

    shared = spec.shared
    return MoELayer(
        spec,
        router=draw(0, spec.router.experts, spec.hidden),
        expert=lambda index: matrices(index, spec.expert.intermediate),
        shared=(lambda: matrices(spec.router.experts, shared.intermediate)) if shared else None,
        shared_gate=draw(1, 1, spec.hidden) if spec.shared_gate else None,
    )


def _checked(name: str, weight: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if tuple(weight.shape) != shape:
        raise ModelError(f"{name}: expected a weight of shape {list(shape)}, got {list(weight.shape)}")
    return weight.detach()
