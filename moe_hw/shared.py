"""Shared experts as the modules of transformers 5.x keep them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call

from moe_hw.errors import UnsupportedLayer
from moe_hw.forms import activation_of, form_of
from moe_hw.layer import ExpertWeights
from moe_hw.spec import ExpertSpec, SharedSpec

GATE, UP, BOTH, DOWN = (f"{name}_proj.weight" for name in ("gate", "up", "gate_up", "down"))
LAYOUTS = ({GATE, UP, DOWN}, {BOTH, DOWN}, {UP, DOWN})
"""Parameters of a shared expert: three matrices, the first two in one, or those of two layers."""


@dataclass(frozen=True)
class SharedExpert:
    """The shared expert of a layer.

    Attributes:
        module: the module that holds it.
        form: of its width.
    """

    module: torch.nn.Module
    form: ExpertSpec

    def spec(self, experts: ExpertSpec, gated: bool) -> tuple[ExpertSpec, SharedSpec]:
        """The routed experts' spec with its own beside it; limits may differ.

        Raises:
            UnsupportedLayer: it is not of the routed experts' form.
        """
        if experts.limit is None and self.form.limit is not None:
            experts = dataclasses.replace(experts, clamp=self.form.clamp)
        for axis in ("gated", "activation", "up_offset", "gate_softcap", "up_softcap", "clamp"):
            found, expected = getattr(self.form, axis), getattr(experts, axis)
            if found != expected and not (axis == "clamp" and self.form.limit is None):
                raise UnsupportedLayer(f"shared.{axis}: expected {expected} as of the routed experts, got {found}")
        return experts, SharedSpec(self.form.intermediate, gated, self.form.limit)

    def read(self) -> ExpertWeights:
        """Its matrices, views of the module's."""
        weights = dict(self.module.named_parameters())
        gate, up = weights[BOTH].chunk(2) if BOTH in weights else (weights.get(GATE), weights[UP])
        return ExpertWeights(gate, up, weights[DOWN])


def read_shared(module: Any) -> SharedExpert:
    """The shared expert of a module, whose weights need not be loaded.

    Raises:
        UnsupportedLayer: it has other parameters, or an activation that this version does not have.
    """
    name = type(module).__name__
    weights = dict(module.named_parameters())
    if set(weights) not in LAYOUTS:
        known = " or ".join(", ".join(sorted(layout)) for layout in LAYOUTS)
        raise UnsupportedLayer(f"{name}: expected the parameters {known}, got {', '.join(sorted(weights))}")

    # Evaluated with matrices that hand gate and up through.
    ones = torch.eye(2, dtype=torch.float64, device="cpu")
    handed = {GATE: ones[:1], UP: ones[1:], BOTH: ones, DOWN: ones[:1, :1]}

    def evaluate(*inputs: torch.Tensor) -> torch.Tensor:
        matrices = {key: handed[key][:, -len(inputs) :] for key in weights}
        return functional_call(module, matrices, torch.stack(inputs, -1))[..., 0]

    if GATE in weights or BOTH in weights:
        form = form_of(evaluate, name, module)
    else:
        form = ExpertSpec(1, activation_of(evaluate), gated=False)
    return SharedExpert(module, dataclasses.replace(form, intermediate=weights[DOWN].shape[1]))
