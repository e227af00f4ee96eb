"""A MoE layer: its spec and access to its float weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from moe_hw.errors import ModelError
from moe_hw.spec import LayerSpec


class ExpertWeights(NamedTuple):
    """The matrices of one expert: ``gate`` and ``up`` are [I, H], ``down`` is [H, I]; biases [I], [I] and [H].

    A two-layer expert has no gate.
    """

    gate: torch.Tensor | None
    up: torch.Tensor
    down: torch.Tensor
    gate_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None


class MoELayer:
    """A layer's spec with lazy access to its weights: an expert is read when it is asked for.

    Parameters:
        spec: sizes and semantics.
        expert: reads routed expert ``i``.
        router: weight of the router, [E, H], unless routes are given.
        router_bias: bias of its logits, [E], if the spec has one.
        correction: bias that counts for the choice alone, [E], if the spec has one.
        shared: reads the shared expert, if the spec has one.
        shared_gate: weight of the shared expert's gate, [1, H], if it is gated.

    Raises:
        ModelError: a weight has another shape than the spec says, or a weight of the spec is missing.
    """

    def __init__(
        self,
        spec: LayerSpec,
        *,
        expert: Callable[[int], ExpertWeights],
        router: torch.Tensor | None = None,
        router_bias: torch.Tensor | None = None,
        correction: torch.Tensor | None = None,
        shared: Callable[[], ExpertWeights] | None = None,
        shared_gate: torch.Tensor | None = None,
    ):
        for name, given, wanted in (
            ("router", router is not None, not spec.router.given),
            ("router's bias", router_bias is not None, spec.router.bias),
            ("router's correction", correction is not None, spec.router.correction is not None),
            ("shared expert", shared is not None, spec.shared is not None),
            ("shared expert's gate", shared_gate is not None, spec.shared_gate),
        ):
            if given != wanted:
                raise ModelError(f"{name}: expected {'one' if wanted else 'none'} as in the spec, got the opposite")
        self.spec = spec
        self._router = _checked("router", router, (spec.router.experts, spec.hidden))
        self._router_bias = _checked("router bias", router_bias, (spec.router.experts,))
        self._correction = _checked("router correction", correction, (spec.router.experts,))
        self._expert = expert
        self._shared = shared
        self._shared_gate = _checked("shared_expert_gate", shared_gate, (1, spec.hidden))

    @classmethod
    def from_module(cls, block: torch.nn.Module) -> MoELayer:
        """The layer of a transformers MoE block; shares the block's memory.

        Raises:
            UnsupportedLayer: the block is of another class, or has a feature that this version cannot represent.
        """
        from moe_hw.block import read_block

        return read_block(block)

    def router_weight(self) -> torch.Tensor | None:
        """float32 [E, H], or None if routes are given."""
        return self._router

    def router_bias(self) -> torch.Tensor | None:
        """float32 [E], or None if the logits have no bias."""
        return self._router_bias

    def correction(self) -> torch.Tensor | None:
        """float32 [E], or None if experts are chosen by their logits."""
        return self._correction

    def shared_gate_weight(self) -> torch.Tensor | None:
        """float32 [1, H], or None if the shared expert has no gate."""
        return self._shared_gate

    def expert(self, index: int) -> ExpertWeights:
        """The float32 matrices of a routed expert."""
        expert = self.spec.expert
        return self._matrices(f"expert {index}", self._expert(index), expert.intermediate, expert.bias)

    def shared(self) -> ExpertWeights | None:
        """The float32 matrices of the shared expert, or None if there is none."""
        if self._shared is None or self.spec.shared is None:
            return None
        return self._matrices("shared expert", self._shared(), self.spec.shared.intermediate, False)

    def _matrices(self, name: str, weights: ExpertWeights, inter: int, bias: bool) -> ExpertWeights:
        hidden, gated = self.spec.hidden, self.spec.expert.gated
        shapes: dict[str, tuple[bool, tuple[int, ...]]] = {
            "gate": (gated, (inter, hidden)),
            "up": (True, (inter, hidden)),
            "down": (True, (hidden, inter)),
            "gate_bias": (gated and bias, (inter,)),
            "up_bias": (bias, (inter,)),
            "down_bias": (bias, (hidden,)),
        }
        for part, (wanted, _) in shapes.items():
            if (getattr(weights, part) is not None) != wanted:
                raise ModelError(f"{name} {part}: expected {'one' if wanted else 'none'} as in the spec")
        checked = {
            part: _checked(f"{name} {part}", getattr(weights, part), shape) for part, (_, shape) in shapes.items()
        }
        return ExpertWeights(**checked)  # type: ignore[arg-type]  # up and down are there


def random_layer(spec: LayerSpec, seed: int = 0) -> MoELayer:
    """A layer of seeded normal weights that keep a standard normal token's activations of order one.

    Every expert is drawn when it is asked for, always the same, so layers of any size cost no memory.
    """

    expert = spec.expert
    parts = len(ExpertWeights._fields)

    def draw(stream: int, rows: int, columns: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + stream)
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    def matrices(number: int, inter: int, bias: bool) -> ExpertWeights:
        first = 3 + parts * number
        gate, up, down = (
            draw(first, inter, spec.hidden), draw(first + 1, inter, spec.hidden), draw(first + 2, spec.hidden, inter)
        )  # fmt: skip
        if not bias:
            return ExpertWeights(gate if expert.gated else None, up, down)
        gate_bias, up_bias, down_bias = (
            draw(first + 3 + place, size, 1)[:, 0] for place, size in enumerate((inter, inter, spec.hidden))
        )
        return ExpertWeights(
            gate if expert.gated else None, up, down, gate_bias if expert.gated else None, up_bias, down_bias
        )

    shared, router = spec.shared, spec.router
    router_streams = 3 + parts * (router.experts + 1)  # behind the experts' and the shared expert's
    return MoELayer(
        spec,
        router=None if router.given else draw(0, router.experts, spec.hidden),
        router_bias=draw(2, router.experts, 1)[:, 0] if router.bias else None,
        correction=draw(router_streams, router.experts, 1)[:, 0] / 4 if router.correction else None,
        expert=lambda index: matrices(index, expert.intermediate, expert.bias),
        shared=(lambda: matrices(router.experts, shared.intermediate, False)) if shared else None,
        shared_gate=draw(1, 1, spec.hidden) if spec.shared_gate else None,
    )


def _checked(name: str, weight: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor | None:
    """A weight that there may be, as float32."""
    if weight is None:
        return None
    if tuple(weight.shape) != shape:
        raise ModelError(f"{name}: expected a weight of shape {list(shape)}, got {list(weight.shape)}")
    return weight.detach().float()
