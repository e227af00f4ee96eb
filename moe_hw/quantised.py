"""A layer whose weights are quantised as they are asked for, and the exponents that its descriptor holds."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from moe_hw.arch import ROWS
from moe_hw.errors import ModelError, UsageError
from moe_hw.formats import (
    CONSTANT_EXPONENT,
    CONSTANTS,
    ROUTER,
    SCALES,
    QuantisedMatrix,
    WeightFormat,
    interleave,
    largest_bias_exponent,
    largest_magnitude,
    largest_scale_exponent,
    layer_format,
    quantise,
    with_bias,
)
from moe_hw.layer import ExpertWeights, MoELayer
from moe_hw.registers import NO_CAP, NO_LIMIT
from moe_hw.spec import ACTIVATIONS, CORRECTIONS, SCORES, ExpertSpec, LayerSpec, blocks
from moe_hw.tables import GATES, RELU

CACHE_BYTES = 64 << 20
"""Quantised experts that a layer keeps for the next call."""

MAX_CORRECTION_SHIFT = 14
"""Of a correction table: two of its words, each with a logit's 42 bits, are within a key."""

COMBINE_BITS = 46
"""Bits of a combine word that the bound on its sum may fill."""


class QuantisedExpert(NamedTuple):
    """The two matrices of an expert, padded with rows of zeros.

    Attributes:
        gate_up: ``[2 * 32 * blocks(I), 32 * input blocks]``, rows of gate and up in turn; of a two-layer expert up
            alone, half as many.
        down: ``[32 * blocks(H), 32 * blocks(I)]``.
    """

    gate_up: QuantisedMatrix
    down: QuantisedMatrix

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes


class Correction(NamedTuple):
    """The correction table, int32 ``[E]``, in units of ``2**(shift - 30)``."""

    table: np.ndarray
    shift: int


class CodedLayer(ABC):
    """A layer as codes and scales: what the memory image and the golden model are made from.

    Parameters:
        spec: the layer's spec.
        weight_format_name: as of ``moe_hw.formats.LayerFormat``.
        name: what errors call the layer.

    Attributes:
        format_name: that name.
        format: weight format of the shared expert.
        formats: of each routed expert.
        stored: experts that an image holds. The room of the others stays free, for simulations that never read them.

    Raises:
        UsageError: an unknown weight format.
    """

    def __init__(self, spec: LayerSpec, weight_format_name: str, name: str):
        self.spec = spec
        self.name = name
        formats = layer_format(weight_format_name)
        self.format_name = formats.name
        self.format: WeightFormat = formats.format
        self.formats = formats.of(spec.router.experts)
        self.stored: Sequence[int] = range(spec.router.experts)

    @property
    @abstractmethod
    def router(self) -> QuantisedMatrix | None:
        """``[rows, 32 * input blocks]``, 16-bit codes, with the shared expert's gate; None if routes are given."""

    @property
    @abstractmethod
    def correction(self) -> Correction | None:
        """The bias that counts for the choice of experts alone, or None if their keys are the logits."""

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
        spec = self.spec
        bound = spec.router.weight_bound * self.routed_gain()
        if self.shared is not None:
            bound += gain(self.shared, spec.expert)
        bound *= 2 * (ROWS * spec.input_blocks * 2.0**30) ** (spec.expert.degree / 2)
        mantissa, exponent = np.frexp(bound)
        return int(exponent) - int(mantissa == 0.5) - COMBINE_BITS if bound > 0 else 0

    @cached_property
    def descriptor(self) -> dict[str, int]:
        """The words of the layer's descriptor by name, without the magic word and the addresses."""
        spec, routed, shared = self.spec, self.expert(0), self.shared
        expert = spec.expert
        gate, up = routed.gate_up.exponents[0], routed.gate_up.exponents[-1]
        words = {
            "hidden_blocks": spec.hidden_blocks,
            "input_blocks": spec.input_blocks,
            "inter_blocks": spec.inter_blocks,
            "shared_blocks": spec.shared_blocks,
            "experts": spec.router.experts,
            "top_k": spec.router.top_k,
            "normalise": int(spec.router.normalise),
            "score": 0 if spec.router.given else SCORES.index(spec.router.score),
            "shared_gate": int(spec.shared_gate),
            "given_routes": int(spec.router.given),
            "activation": RELU if expert.square else ACTIVATIONS.index(expert.activation),
            "gated": int(expert.gated),
            "square": int(expert.square),
            "elements": int(bool(self.format.values)),
            **limit_words("", expert, expert.limit),
            **cap_words(expert),
            "gate_exponent": 8 + gate - routed.gate_up.shift,
            "up_exponent": 8 + up - routed.gate_up.shift,
            "up_shift": routed.gate_up.shift,
            "down_exponent": routed.down.exponents[0] - routed.down.shift,
            "down_shift": routed.down.shift,
            "combine_exponent": self.combine_exponent,
        }
        if self.correction is not None:
            correction = CORRECTIONS.index(spec.router.keyed)
            words |= {"correction": correction, "correction_shift": self.correction.shift}
        if (groups := spec.router.groups) is not None:
            words |= {
                "groups": groups.count,
                "group_size": spec.router.experts // groups.count,
                "kept_groups": groups.kept,
                "group_sum": int(groups.score == "two"),
                "group_zero": int(groups.zero),
            }
        if self.router is not None:
            words |= {
                "epsilon": max(1, round(spec.router.epsilon * 2**30)),
                "scale": _number(spec.router.scale),
                "router_bits": ROUTER.bits,
                "router_exponent": self.router.exponents[0] - self.router.shift,
                "router_shift": self.router.shift,
            }
        if shared is not None and spec.shared is not None:
            gate, up = shared.gate_up.exponents[0], shared.gate_up.exponents[-1]
            words |= {
                **limit_words("shared_", expert, spec.shared.limit),
                "shared_bits": self.format.bits,
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
        weight_format: as of ``moe_hw.formats.LayerFormat``: a name of ``moe_hw.formats.FORMATS`` for all experts, or
            with others for some, ``int4,0-3=int8,9=int2``.
        name: what errors call the layer.
        scales: how those of the experts are chosen, a name of ``moe_hw.formats.SCALES``.

    Attributes:
        off_grid: with ``grid`` scales, blocks of each routed expert seen so far that could not keep their codes.

    Raises:
        UsageError: an unknown weight format or choice of scales.
        ModelError: from any member, if the weights it needs are not finite.
    """

    def __init__(
        self, layer: MoELayer, weight_format_name: str = "int4", name: str = "layer", scales: str = SCALES[0]
    ):
        super().__init__(layer.spec, weight_format_name, name)
        if scales not in SCALES:
            raise UsageError(f"scales: expected {' or '.join(SCALES)}, got {scales!r}")
        self.layer = layer
        self.scales = scales
        self.off_grid: dict[int, int] = {}
        self._kept: OrderedDict[int, QuantisedExpert] = OrderedDict()

    @cached_property
    def router(self) -> QuantisedMatrix | None:
        weight = self.layer.router_weight()
        gate = self.layer.shared_gate_weight()
        if weight is None:
            return None
        if gate is not None:
            weight = torch.cat((weight, gate))
        affine = self._with_constant(f"{self.name}: router", weight, self.layer.router_bias())
        return affine.quantise(ROUTER, affine.scale_exponent(ROUTER), self.spec.router_rows)

    @cached_property
    def correction(self) -> Correction | None:
        router, bias = self.spec.router, self.layer.correction()
        if router.keyed is None:
            return None
        bias = torch.zeros(router.experts) if bias is None else bias
        return correction_table(f"{self.name}: router correction", bias)

    def expert(self, index: int) -> QuantisedExpert:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        expert = self._quantise(self._affine(index), self._routed_exponents, self.formats[index])
        widest = max(self.formats, key=lambda form: form.bits)
        expert = QuantisedExpert(*(dataclasses.replace(matrix, widest=widest) for matrix in expert))
        self.off_grid[index] = expert.gate_up.off_grid + expert.down.off_grid
        self._kept[index] = expert
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > CACHE_BYTES:
            self._kept.popitem(last=False)
        return expert

    @cached_property
    def shared(self) -> QuantisedExpert | None:
        weights = self.layer.shared()
        if weights is None:
            return None
        matrices = self._matrices(f"{self.name}: shared expert", weights)
        exponents = tuple(matrix.scale_exponent(self.format, self.scales) for matrix in matrices)
        return self._quantise(matrices, exponents, self.format)

    def routed_gain(self) -> float:
        """Reads every expert once."""
        return max(gain(self.expert(index), self.spec.expert) for index in range(self.spec.router.experts))

    @cached_property
    def _routed_exponents(self) -> tuple[int, ...]:
        """S of gate, up and down over all routed experts. Reads every expert once."""
        exponents = [
            [matrix.scale_exponent(form, self.scales) for matrix in self._affine(index)]
            for index, form in enumerate(self.formats)
        ]
        return tuple(max(kind) for kind in zip(*exponents, strict=True))

    def _affine(self, index: int) -> list[Affine]:
        return self._matrices(f"{self.name}: expert {index}", self.layer.expert(index))

    def _matrices(self, name: str, weights: ExpertWeights) -> list[Affine]:
        """Gate, up and down, or up and down, with their biases."""
        expert = self.spec.expert
        up_bias, gate_rows, up_rows = weights.up_bias, None, None
        if expert.up_offset:
            up_bias = (torch.zeros(len(weights.up)) if up_bias is None else up_bias) + expert.up_offset
        down = Affine(f"{name} down", weights.down, weights.down_bias)
        if weights.down_bias is not None:
            gate_rows, up_rows, exponent = hidden_constants(expert)
            down = down._replace(constant_exponent=exponent)
        parts = [self._with_constant(f"{name} up", weights.up, up_bias, up_rows)]
        if weights.gate is not None:
            parts.insert(0, self._with_constant(f"{name} gate", weights.gate, weights.gate_bias, gate_rows))
        return [*parts, down]

    def _with_constant(
        self, name: str, weight: torch.Tensor, bias: torch.Tensor | None, constants: torch.Tensor | None = None
    ) -> Affine:
        """A matrix that multiplies tokens, and behind its rows those of the ``constants``, biases alone."""
        if not self.spec.constant:
            return Affine(name, weight, None)
        bias = torch.zeros(len(weight)) if bias is None else bias
        if constants is not None:
            missing = -len(weight) % ROWS
            weight = torch.nn.functional.pad(weight, (0, 0, 0, missing + ROWS))
            bias = torch.cat((torch.nn.functional.pad(bias, (0, missing)), constants))
        return Affine(name, weight, bias)

    def _quantise(self, matrices: list[Affine], exponents: tuple[int, ...], form: WeightFormat) -> QuantisedExpert:
        *first, down = matrices
        rows = ROWS * blocks(len(first[0].weight))
        gate_up = interleave(
            matrix.quantise(form, exponent, rows, self.scales)
            for matrix, exponent in zip(first, exponents[:-1], strict=True)
        )
        rows = ROWS * blocks(len(down.weight))
        return QuantisedExpert(gate_up, down.quantise(form, exponents[-1], rows, self.scales))


def correction_table(name: str, bias: torch.Tensor) -> Correction:
    """A bias ``[E]`` in the smallest units in which all of it has 32 bits.

    Raises:
        ModelError: a bias is NaN or Inf, or beyond the range of the largest units.
    """
    largest = largest_magnitude(name, bias)
    for shift in range(MAX_CORRECTION_SHIFT + 1):
        table = np.rint(np.ldexp(bias.double().numpy(), 30 - shift))
        if np.abs(table).max() < 2**31:
            return Correction(table.astype(np.int32), shift)
    raise ModelError(f"{name}: expected magnitudes below 2^{MAX_CORRECTION_SHIFT + 1}, got {largest:g}")


class Affine(NamedTuple):
    """A matrix ``[N, K]`` and its bias ``[N]``, if the vectors that it multiplies have a block of constants."""

    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    constant_exponent: int = CONSTANT_EXPONENT

    def scale_exponent(self, form: WeightFormat, scales: str = SCALES[0]) -> int:
        """The largest scale exponent that may occur.

        Raises:
            ModelError: a weight is NaN or Inf.
        """
        exponent = largest_scale_exponent(largest_magnitude(self.name, self.weight), form) + (scales == "grid")
        if self.bias is None:
            return exponent
        magnitude = largest_magnitude(f"{self.name} bias", self.bias)
        return max(exponent, largest_bias_exponent(magnitude, form, self.constant_exponent)) if magnitude else exponent

    def quantise(self, form: WeightFormat, exponent: int, rows: int, scales: str = SCALES[0]) -> QuantisedMatrix:
        """Codes and scales, with ``exponent`` as the largest scale exponent of the matrix kind."""
        matrix = quantise(self.weight, form, exponent, rows, scales)
        return matrix if self.bias is None else with_bias(matrix, self.bias, self.constant_exponent)


def hidden_constants(expert: ExpertSpec) -> tuple[torch.Tensor, torch.Tensor, int]:
    """32 neurons whose activations are ``CONSTANTS * 2**exponent``, what the biases of down are weights of.

    Returns:
        (gate, up, exponent): float64 ``[32]`` of each neuron; of two-layer experts, up alone counts. The exponent is
        ``CONSTANT_EXPONENT`` or, if the limits do not allow that, the largest below it.
    """
    most = gate_limit(expert, expert.limit) or 16.0
    gate = min(16.0, most)
    if not expert.gated:
        largest = activate(expert, most)
    elif expert.limit is None:
        largest = 16 * activate(expert, gate)
    else:
        largest = (expert.limit + expert.up_offset) * activate(expert, gate)
    exponent = min(CONSTANT_EXPONENT, math.floor(math.log2(largest / int(CONSTANTS.max()))))
    wanted = np.ldexp(CONSTANTS.astype(np.float64), exponent)
    if not expert.gated:
        return torch.empty(0), torch.tensor([_inverse(expert, value) for value in wanted]), exponent
    return torch.full((ROWS,), gate, dtype=torch.float64), torch.from_numpy(wanted / activate(expert, gate)), exponent


def activate(expert: ExpertSpec, argument: float) -> float:
    """The activation function of a number, without limits."""
    if expert.square:
        return max(argument, 0.0) ** 2
    return argument * GATES[expert.activation](argument)


def _inverse(expert: ExpertSpec, value: float) -> float:
    """The positive argument at which the activation, which rises there, has this positive value, by bisection."""
    low, high = 0.0, 2.0**21
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if activate(expert, middle) >= value else (middle, high)
    return high


def gate_limit(expert: ExpertSpec, limit: float | None) -> float | None:
    """What the activation's argument is limited to."""
    if limit is None or expert.clamp == "before":
        return limit
    return _inverse(expert, limit)


def limit_words(prefix: str, expert: ExpertSpec, limit: float | None) -> dict[str, int]:
    """The descriptor's words for the limits of an expert's gate and up."""
    offset = expert.up_offset
    limits = {
        "gate_limit": gate_limit(expert, limit),
        "up_limit": None if limit is None else limit + offset,
        "up_lower_limit": None if limit is None else limit - offset,
    }
    return {f"{prefix}{name}": NO_LIMIT if value is None else _number(value) for name, value in limits.items()}


def cap_words(expert: ExpertSpec) -> dict[str, int]:
    """The descriptor's words for the softcaps of gate and up."""
    words = {"softcap": int(expert.softcapped)}
    for name, cap in (("gate_cap", expert.gate_softcap), ("up_cap", expert.up_softcap)):
        words[name] = 0 if cap is None else _number(cap)
        words[f"{name}_inverse"] = NO_CAP if cap is None else _number(1 / cap)
    return words


def _number(value: float) -> int:
    """A word of a positive number: a mantissa of 16 bits and above it an exponent of 12."""
    fraction, exponent = np.frexp(value)
    mantissa = round(float(fraction) * 2**16)
    if mantissa == 1 << 16:
        mantissa, exponent = 1 << 15, exponent + 1
    return (int(exponent) - 16 & 0xFFF) << 16 | mantissa


def gain(expert: QuantisedExpert, spec: ExpertSpec) -> float:
    """Largest output magnitude for a unit input, by Cauchy-Schwarz: |g * s(g) * u| <= |g| * |u|."""
    gate_up = expert.gate_up.row_norms_squared()
    down = expert.down.row_norms_squared().max()
    if spec.degree == 1:
        return float(np.sqrt(down * gate_up.sum()))
    gate, up = (gate_up[0::2], gate_up[1::2]) if spec.gated else (gate_up, gate_up)
    return float(np.sqrt(down * gate.sum() * up.max()))
