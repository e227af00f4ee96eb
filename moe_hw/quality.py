"""What a weight format costs: the golden model against the float reference, on a model's own activations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from moe_hw.errors import ModelError
from moe_hw.layer import ExpertWeights
from moe_hw.quantised import QuantisedExpert, QuantisedLayer
from moe_hw.reference import reference
from moe_hw.result import Result
from moe_hw.routes import GivenRoutes
from moe_hw.spec import LayerSpec
from moe_hw.twins.layer import golden


def decibels(signal: float, error: float) -> float:
    """A ratio of energies; infinite without an error, NaN without a signal."""
    if signal == 0:
        return math.nan
    return 10 * math.log10(signal / error) if error > 0 else math.inf


@dataclass
class Quality:
    """Errors of one layer over all its calls.

    Attributes:
        name: of the layer.
        worst_tensor: the matrix of an expert whose weights lost most, and ``worst_sqnr`` in decibels.
        tokens: that the layer saw.
        agreed: tokens whose experts are those that the float reference chooses; None if the host routes.
        signal, error: energies of the reference's outputs and of the difference.
        overflows: calls in which a sum saturated; they are computed in floating point instead.
    """

    name: str
    worst_tensor: str = ""
    worst_sqnr: float = math.inf
    tokens: int = 0
    agreed: int | None = 0
    signal: float = 0.0
    error: float = 0.0
    overflows: int = 0

    @property
    def sqnr(self) -> float:
        """Decibels of the outputs."""
        return decibels(self.signal, self.error)


class MeasuredLayer:
    """A layer in the golden model, measured at each call, with the interface of one on a device."""

    def __init__(self, quantised: QuantisedLayer, quality: Quality):
        self._quantised = quantised
        self._quality = quality
        self.spec: LayerSpec = quantised.spec
        self.loaded = True

    def __call__(self, x: torch.Tensor, routes: GivenRoutes | None = None) -> Result:
        """Outputs of ``[..., hidden]`` and the experts of each token."""
        tokens = x.detach().reshape(-1, x.shape[-1]).cpu()
        exact = reference(self._quantised.layer, tokens, routes)
        quality = self._quality
        try:
            result = golden(self._quantised, tokens, routes=routes)
        except ModelError:
            quality.overflows += 1
            result = exact
        quality.tokens += len(tokens)
        quality.signal += float(exact.output.double().square().sum())
        quality.error += float((result.output - exact.output).double().square().sum())
        if routes is not None:
            quality.agreed = None
        elif quality.agreed is not None:
            same = result.experts.sort(1).values == exact.experts.sort(1).values
            quality.agreed += int(same.all(1).sum())
        return Result(result.output.reshape(x.shape), result.experts, result.weights)


@dataclass
class MeasuringDevice:
    """Takes the place of a device for ``host.integrate.accelerate``.

    Attributes:
        layers: what was measured, one entry a layer.
    """

    layers: list[Quality] = field(default_factory=list)

    def load(self, quantised: QuantisedLayer, name: str) -> MeasuredLayer:
        """A layer that computes on the host; also finds its worst tensor, which reads every expert."""
        quality = Quality(name)
        for tensor, sqnr in tensor_errors(quantised):
            if not sqnr >= quality.worst_sqnr:
                quality.worst_tensor, quality.worst_sqnr = tensor, sqnr
        self.layers.append(quality)
        return MeasuredLayer(quantised, quality)

    def unload(self, layer: MeasuredLayer) -> None:
        """Nothing lies anywhere."""
        layer.loaded = False


def tensor_errors(quantised: QuantisedLayer) -> Iterator[tuple[str, float]]:
    """Name and decibels of every matrix of every expert; those of zeros are left out."""
    layer, spec = quantised.layer, quantised.spec
    pairs = [(f"expert {index}", layer.expert, quantised.expert, index) for index in range(spec.router.experts)]
    for name, floats, codes, index in pairs:
        yield from _errors(name, floats(index), codes(index), spec)
    shared, coded = layer.shared(), quantised.shared
    if shared is not None and coded is not None:
        yield from _errors("shared expert", shared, coded, spec)


def _errors(name: str, weights: ExpertWeights, coded: QuantisedExpert, spec: LayerSpec) -> Iterator[tuple[str, float]]:
    first, values = spec.first_matrices, coded.gate_up.dequantise()
    found = {"up": values[first - 1 :: first], "down": coded.down.dequantise()}
    if weights.gate is not None:
        found["gate"] = values[0::first]
    for part, matrix in found.items():
        exact = getattr(weights, part).double().numpy()
        difference = matrix[: exact.shape[0], : exact.shape[1]] - exact
        sqnr = decibels(float(np.square(exact).sum()), float(np.square(difference).sum()))
        if not math.isnan(sqnr):
            yield f"{name} {part}", sqnr
