"""What a module of experts or a shared expert computes, found by evaluating it: nothing is inferred from names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

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
    evaluate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], name: str, module: torch.nn.Module
) -> ExpertSpec:
    """Experts of width 1 without biases that have this gated activation of gate and up.

    Parameters:
        evaluate: the activation.
        name: what errors call it.
        module: what has its limit or its softcaps, if it has some.

    Raises:
        UnsupportedLayer: it is none that this version has.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    limits, caps = _numbers([module], "limit"), _numbers(module.modules(), "softcap")
    most = 3 * max([10.0, *limits, *caps])
    gate, up = (torch.rand(2, PROBES, generator=generator, dtype=torch.float64, device="cpu") * 2 - 1) * most
    with torch.no_grad():
        values = evaluate(gate, up).double()
    for form in _forms(limits, caps):
        if _equal(values, hidden_activations(form, form.limit, gate, up)):
            return form
    raise UnsupportedLayer(
        f"expert.glu: expected activation(gate) * up with a limit before or after the activation, an offset of up or "
        f"softcaps, got {name}; this version cannot run the layer"
    )


def _forms(limits: list[float], caps: list[float]) -> Iterator[ExpertSpec]:
    bounds: list[tuple[float | None, str]] = [(None, CLAMPS[0]), *itertools.product(limits, CLAMPS)]
    for activation, (limit, clamp), offset in itertools.product(GATED, bounds, (0.0, 1.0)):
        if limit is None or offset < limit:
            yield ExpertSpec(1, activation, limit=limit, clamp=clamp, up_offset=offset)
    for activation, gate, up in itertools.product(GATED, (None, *caps), (None, *caps)):
        yield ExpertSpec(1, activation, gate_softcap=gate, up_softcap=up)


def _equal(values: torch.Tensor, known: torch.Tensor) -> bool:
    return bool(((values - known).abs() <= PROBE_ERROR * (1 + known.abs())).all())


def _numbers(modules: Iterable[torch.nn.Module], word: str) -> list[float]:
    """Finite numbers above 0 that modules have under names with this word."""
    found = [value for module in modules for name, value in vars(module).items() if word in name]
    numbers = [float(value) for value in found if isinstance(value, (int, float))]
    return sorted({value for value in numbers if math.isfinite(value) and value > 0})
