"""What a module of experts or a shared expert computes, found by evaluating it: nothing is inferred from names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from moe_hw.errors import UnsupportedLayer
from moe_hw.reference import ACTIVATIONS, hidden_activations
from moe_hw.spec import CLAMPS, GATED, ExpertSpec

PROBES = 4096
"""Points at which an activation is compared."""

PROBE_ERROR = 1e-5
"""Largest relative difference of two equal activations, of which one may be evaluated in float32."""


def activation_of(function: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Name of an activation function of one argument.

    Raises:
        UnsupportedLayer: it is none that this version has.
    """
    points = torch.linspace(-20, 20, PROBES, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        values = function(points).double()
    for name, known in ACTIVATIONS.items():
        if _equal(values, known(points)):
            return name
    what = type(function).__name__
    raise UnsupportedLayer(
        f"expert.activation: expected {' or '.join(ACTIVATIONS)}, got {what}; this version cannot run the layer"
    )


def form_of(
    evaluate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], name: str, limits: list[float]
) -> ExpertSpec:
    """Experts of width 1 without biases that have this gated activation of gate and up.

    Parameters:
        evaluate: the activation.
        name: what errors call it.
        limits: what its limit may be, if it has one.

    Raises:
        UnsupportedLayer: it is none that this version has.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    most = 3 * max([10.0, *limits])
    gate, up = (torch.rand(2, PROBES, generator=generator, dtype=torch.float64, device="cpu") * 2 - 1) * most
    with torch.no_grad():
        values = evaluate(gate, up).double()
    for form in _forms(limits):
        if _equal(values, hidden_activations(form, form.limit, gate, up)):
            return form
    raise UnsupportedLayer(
        f"expert.glu: expected activation(gate) * up with a limit before or after the activation or an offset of up, "
        f"got {name}; this version cannot run the layer"
    )


def _forms(limits: list[float]) -> Iterator[ExpertSpec]:
    bounds: list[tuple[float | None, str]] = [(None, CLAMPS[0]), *itertools.product(limits, CLAMPS)]
    for activation, (limit, clamp), offset in itertools.product(GATED, bounds, (0.0, 1.0)):
        if limit is None or offset < limit:
            yield ExpertSpec(1, activation, limit=limit, clamp=clamp, up_offset=offset)


def _equal(values: torch.Tensor, known: torch.Tensor) -> bool:
    return bool(((values - known).abs() <= PROBE_ERROR * (1 + known.abs())).all())


def limits_of(module: Any) -> list[float]:
    """Finite numbers that a module calls a limit."""
    found = [value for name, value in vars(module).items() if "limit" in name and isinstance(value, (int, float))]
    return sorted({float(value) for value in found if math.isfinite(value) and value > 0})
