"""A layer whose weights are quantised as they are asked for, and the exponents that its descriptor holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from moe_hw.arch import ROWS
from moe_hw.formats import (
    ROUTER,
    QuantisedMatrix,
    WeightFormat,
    interleave,
    largest_magnitude,
    largest_scale_exponent,
    quantise,
    weight_format,
)
from moe_hw.layer import ExpertWeights, MoELayer
from moe_hw.spec import LayerSpec

CACHE_BYTES = 64 << 20
"""Quantised experts that a layer keeps for the next call."""

COMBINE_BITS = 46
"""Bits of a combine word that the bound on its sum may fill."""


class QuantisedExpert(NamedTuple):
    """The two matrices of an expert, padded with rows of zeros.

    Attributes:
        gate_up: ``[2 * 32 * blocks(I), 32 * blocks(H)]``, rows of gate and up in turn.
        down: ``[32 * blocks(H), 32 * blocks(I)]``.
    """

    gate_up: QuantisedMatrix
    down: QuantisedMatrix

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes


class CodedLayer(ABC):
    """A layer as codes and scales: what the memory image and the golden model are made from.

    Parameters:
        spec: the layer's spec.
        weight_format_name: ``int4`` or ``int8``, for routed and shared experts.
        name: what errors call the layer.

    Attributes:
        stored: experts that an image holds. The room of the others stays free, for simulations that never read them.

    Raises:
        UsageError: an unknown weight format.
    """

    def __init__(self, spec: LayerSpec, weight_format_name: str, name: str):
        self.spec = spec
        self.name = name
        self.format: WeightFormat = weight_format(weight_format_name)
        self.stored: Sequence[int] = range(spec.router.experts)

    @property
    @abstractmethod
    def router(self) -> QuantisedMatrix:
        """``[experts + 1 if the shared expert is gated, 32 * blocks(H)]``, 16-bit codes."""

    @abstractmethod
    def expert(self, index: int) -> QuantisedExpert:
        """Routed expert ``index``."""

    @property
    @abstractmethod
    def shared(self) -> QuantisedExpert | None:
        """The shared expert, or None if there is none."""

    @abstractmethod
    def routed_gain(self) -> float:
        """A bound on a routed expert's output magnitude for an input of norm one."""

    @cached_property
    def combine_exponent(self) -> int:
        """Exponent of a combine word at token exponent 0: no input can overflow it."""
        bound = self.routed_gain()
        if self.shared is not None:
            bound += _gain(self.shared)
        bound *= ROWS * self.spec.hidden_blocks * 2.0**31
        mantissa, exponent = np.frexp(bound)
        return int(exponent) - int(mantissa == 0.5) - COMBINE_BITS if bound > 0 else 0

    def descriptor(self) -> dict[str, int]:
        """The words of the layer's descriptor by name, without the magic word and the addresses."""
        spec, routed, shared = self.spec, self.expert(0), self.shared
        gate, up = routed.gate_up.exponents
        words = {
            "hidden_blocks": spec.hidden_blocks,
            "inter_blocks": spec.inter_blocks,
            "shared_blocks": spec.shared_blocks,
            "experts": spec.router.experts,
            "top_k": spec.router.top_k,
            "normalise": int(spec.router.normalise),
            "shared_gate": int(spec.shared_gate),
            "passes": self.format.passes,
            "router_passes": ROUTER.passes,
            "router_exponent": self.router.exponents[0] - self.router.shift,
            "router_shift": self.router.shift,
            "gate_exponent": 8 + gate - routed.gate_up.shift,
            "up_exponent": 8 + up - routed.gate_up.shift,
            "up_shift": routed.gate_up.shift,
            "down_exponent": routed.down.exponents[0] - routed.down.shift,
            "down_shift": routed.down.shift,
            "combine_exponent": self.combine_exponent,
        }
        if shared is not None:
            gate, up = shared.gate_up.exponents
            words |= {
                "shared_passes": self.format.passes,
                "shared_gate_exponent": 8 + gate - shared.gate_up.shift,
                "shared_up_exponent": 8 + up - shared.gate_up.shift,
                "shared_up_shift": shared.gate_up.shift,
                "shared_down_exponent": shared.down.exponents[0] - shared.down.shift,
                "shared_down_shift": shared.down.shift,
            }
        return words


class QuantisedLayer(CodedLayer):
    """A layer in a weight format. Every expert is quantised when it is asked for; a few are kept.

    Parameters:
        layer: the float layer.
        weight_format: ``int4`` or ``int8``, for routed and shared experts.
        name: what errors call the layer.

    Raises:
        UsageError: an unknown weight format.
        ModelError: from any member, if the weights it needs are not finite.
    """

    def __init__(self, layer: MoELayer, weight_format_name: str = "int4", name: str = "layer"):
        super().__init__(layer.spec, weight_format_name, name)
        self.layer = layer
        self._kept: OrderedDict[int, QuantisedExpert] = OrderedDict()

    @cached_property
    def router(self) -> QuantisedMatrix:
        weight = self.layer.router_weight()
        gate = self.layer.shared_gate_weight()
        if gate is not None:
            weight = torch.cat((weight, gate))
        magnitude = largest_magnitude(f"{self.name}: router", weight)
        return quantise(weight, ROUTER, largest_scale_exponent(magnitude, ROUTER))

    def expert(self, index: int) -> QuantisedExpert:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        expert = self._quantise(self.layer.expert(index), self._routed_exponents)
        self._kept[index] = expert
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > CACHE_BYTES:
            self._kept.popitem(last=False)
        return expert

    @cached_property
    def shared(self) -> QuantisedExpert | None:
        weights = self.layer.shared()
        if weights is None:
            return None
        return self._quantise(weights, self._scale_exponents(_magnitudes(f"{self.name}: shared expert", weights)))

    def routed_gain(self) -> float:
        """Reads every expert once."""
        return max(_gain(self.expert(index)) for index in range(self.spec.router.experts))

    @cached_property
    def _routed_exponents(self) -> tuple[int, int, int]:
        """S of gate, up and down over all routed experts. Reads every expert once."""
        magnitudes = [
            _magnitudes(f"{self.name}: expert {index}", self.layer.expert(index))
            for index in range(self.spec.router.experts)
        ]
        return self._scale_exponents(tuple(max(kind) for kind in zip(*magnitudes, strict=True)))

    def _scale_exponents(self, magnitudes: tuple[float, ...]) -> tuple[int, int, int]:
        gate, up, down = (largest_scale_exponent(magnitude, self.format) for magnitude in magnitudes)
        return gate, up, down

    def _quantise(self, weights: ExpertWeights, exponents: tuple[int, int, int]) -> QuantisedExpert:
        inter = -(-weights.gate.shape[0] // ROWS) * ROWS
        gate, up = (
            quantise(matrix, self.format, exponent, inter)
            for matrix, exponent in ((weights.gate, exponents[0]), (weights.up, exponents[1]))
        )
        down = quantise(weights.down, self.format, exponents[2], ROWS * self.spec.hidden_blocks)
        return QuantisedExpert(interleave((gate, up)), down)


def _magnitudes(name: str, weights: ExpertWeights) -> tuple[float, ...]:
    return tuple(
        largest_magnitude(f"{name} {kind}", matrix) for kind, matrix in zip(weights._fields, weights, strict=True)
    )


def _gain(expert: QuantisedExpert) -> float:
    """Largest output magnitude for a unit input, by Cauchy-Schwarz: |silu(g) * u| <= |g| * |u|."""
    gate_up = expert.gate_up.row_norms_squared()
    down = expert.down.row_norms_squared()
    return float(np.sqrt(down.max() * gate_up[0::2].sum() * gate_up[1::2].max()))
