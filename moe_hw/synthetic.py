"""Quantised layers of any size whose weights are drawn as codes and scales when they are asked for."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch

from moe_hw.arch import ROWS
from moe_hw.errors import UsageError
from moe_hw.formats import MAX_FRACTION, ROUTER, QuantisedMatrix, WeightFormat, fraction_bits
from moe_hw.quantised import CodedLayer, Correction, QuantisedExpert, correction_table
from moe_hw.spec import LayerSpec, blocks

_POOL = 1_048_573
"""Values that are drawn once and repeated. A prime, so that no row of a matrix is like another."""

_LARGEST_F = 2
"""Scales are spread over this many binary orders below the largest."""


class SyntheticLayer(CodedLayer):
    """A layer of seeded random codes and scales that keep a standard normal token's activations of order one.

    An expert is drawn in the time of a copy, always the same, so layers of any size can be benchmarked. The golden
    model and the image work on it as on any other layer.

    Parameters:
        spec: the layer.
        weight_format_name: a name of ``moe_hw.formats.FORMATS``, for routed and shared experts.
        seed: of all weights.
        name: what errors call the layer.

    Raises:
        UsageError: an unknown weight format.
    """

    def __init__(self, spec: LayerSpec, weight_format_name: str = "int4", seed: int = 0, name: str = "layer"):
        super().__init__(spec, weight_format_name, name)
        if len({self.format, *self.formats}) > 1:
            raise UsageError(f"{name}: expected one weight format for a synthetic layer, got {weight_format_name!r}")
        self._seed = seed

    @cached_property
    def router(self) -> QuantisedMatrix | None:
        spec = self.spec
        if spec.router.given:
            return None
        return self._matrix(ROUTER, 0, (spec.router_rows, spec.router_rows), spec.hidden, spec.input_blocks, 1)

    @cached_property
    def correction(self) -> Correction | None:
        if self.spec.router.keyed is None:
            return None
        bias = np.random.default_rng((self._seed, -1 % 2**32)).normal(0, 0.1, self.spec.router.experts)
        return correction_table(self.name, torch.from_numpy(bias))

    def expert(self, index: int) -> QuantisedExpert:
        return self._expert(1 + index, self.spec.expert.intermediate, self.spec.inter_blocks)

    @cached_property
    def shared(self) -> QuantisedExpert | None:
        shared = self.spec.shared
        if shared is None:
            return None
        return self._expert(1 + self.spec.router.experts, shared.intermediate, self.spec.shared_blocks)

    def routed_gain(self) -> float:
        """From the largest code and scale that can be drawn: no expert is visited."""
        spec, inter = self.spec, self.spec.expert.intermediate
        up, down = (
            ROWS * depth * self._largest_weight(width) ** 2
            for width, depth in ((spec.hidden, spec.input_blocks), (inter, spec.inter_blocks))
        )
        return math.sqrt(down * inter * up**spec.expert.degree)

    def _largest_weight(self, width: int) -> float:
        return math.ldexp(15.75 * self.format.largest, _scale_exponent(self.format, width))

    def _expert(self, stream: int, inter: int, inter_blocks: int) -> QuantisedExpert:
        spec, hidden, first = self.spec, self.spec.hidden, self.spec.first_matrices
        up_rows = first * inter, first * ROWS * inter_blocks
        down_rows = hidden, ROWS * spec.hidden_blocks
        return QuantisedExpert(
            self._matrix(self.format, 2 * stream, up_rows, hidden, spec.input_blocks, first),
            self._matrix(self.format, 2 * stream + 1, down_rows, inter, inter_blocks, 1),
        )

    @cached_property
    def _pools(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Codes, ``frac`` and ``f`` by the format's name."""
        random = np.random.default_rng(self._seed)
        pools = {}
        for form in (ROUTER, self.format):
            code_type = np.int8 if form.bits <= 8 else np.int16
            most = len(form.codes) // 2
            codes = form.codes[most + random.integers(-most, most, _POOL, code_type, endpoint=True)].astype(code_type)
            f = random.integers(0, _LARGEST_F, _POOL, np.uint8, endpoint=True)
            unit = 1 << 5 - fraction_bits(f)
            pools[form.name] = codes, (random.integers(0, 32, _POOL, np.uint8) // unit * unit).astype(np.uint8), f
        return pools

    def _matrix(
        self, form: WeightFormat, stream: int, rows: tuple[int, int], width: int, depth: int, interleaved: int
    ) -> QuantisedMatrix:
        """Stretches of the pools from a place that belongs to ``stream``; ``rows`` without and with padding.

        Of ``depth`` blocks, one that is not needed for ``width`` columns is of biases.
        """
        used, padded = rows
        starts = np.random.default_rng((self._seed, stream)).integers(0, _POOL, 3)
        codes, frac, f = (
            np.resize(np.roll(pool, -start), (padded, count))
            for pool, start, count in zip(self._pools[form.name], starts, (ROWS * depth, depth, depth), strict=True)
        )
        codes[:, width : ROWS * blocks(width)] = codes[used:] = 0
        frac[used:], f[used:] = 0, MAX_FRACTION
        return QuantisedMatrix(codes, frac, f, (_scale_exponent(form, width),) * interleaved, form)


def _scale_exponent(form: WeightFormat, width: int) -> int:
    """S that gives a row of ``width`` weights a norm of about one."""
    mean_square = (form.largest * 11.5) ** 2 / 3 * np.mean(0.25 ** np.arange(_LARGEST_F + 1))
    return round(-math.log2(math.sqrt(width * mean_square)))
