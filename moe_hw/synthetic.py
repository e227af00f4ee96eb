"""Quantised layers of any size whose weights are drawn as codes and scales when they are asked for."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from moe_hw.arch import ROWS
from moe_hw.formats import MAX_FRACTION, ROUTER, QuantisedMatrix, WeightFormat
from moe_hw.quantised import CodedLayer, QuantisedExpert
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
        weight_format_name: ``int4`` or ``int8``, for routed and shared experts.
        seed: of all weights.
        name: what errors call the layer.

    Raises:
        UsageError: an unknown weight format.
    """

    def __init__(self, spec: LayerSpec, weight_format_name: str = "int4", seed: int = 0, name: str = "layer"):
        super().__init__(spec, weight_format_name, name)
        self._seed = seed

    @cached_property
    def router(self) -> QuantisedMatrix:
        spec = self.spec
        return self._matrix(ROUTER, 0, (spec.router_rows, spec.router_rows), spec.hidden, 1)

    def expert(self, index: int) -> QuantisedExpert:
        return self._expert(1 + index, self.spec.expert.intermediate)

    @cached_property
    def shared(self) -> QuantisedExpert | None:
        shared = self.spec.shared
        return self._expert(1 + self.spec.router.experts, shared.intermediate) if shared else None

    def routed_gain(self) -> float:
        """From the largest code and scale that can be drawn: no expert is visited."""
        inter = self.spec.expert.intermediate
        up, down = (width * self._largest_weight(width) ** 2 for width in (self.spec.hidden, inter))
        return math.sqrt(down * inter * up * up)

    def _largest_weight(self, width: int) -> float:
        return math.ldexp(15 * self.format.largest, _scale_exponent(self.format, width))

    def _expert(self, stream: int, inter: int) -> QuantisedExpert:
        hidden = self.spec.hidden
        up_rows, down_rows = (2 * inter, 2 * ROWS * blocks(inter)), (hidden, ROWS * blocks(hidden))
        return QuantisedExpert(
            self._matrix(self.format, 2 * stream, up_rows, hidden, 2),
            self._matrix(self.format, 2 * stream + 1, down_rows, inter, 1),
        )

    @cached_property
    def _pools(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Codes, ``frac`` and ``f`` by the format's name."""
        random = np.random.default_rng(self._seed)
        pools = {}
        for form in (ROUTER, self.format):
            code_type = np.int8 if form.bits <= 8 else np.int16
            codes = random.integers(-form.largest, form.largest, _POOL, code_type, endpoint=True)
            frac = random.integers(0, 8, _POOL, np.uint8)
            pools[form.name] = codes, frac, random.integers(0, _LARGEST_F, _POOL, np.uint8, endpoint=True)
        return pools

    def _matrix(
        self, form: WeightFormat, stream: int, rows: tuple[int, int], width: int, interleaved: int
    ) -> QuantisedMatrix:
        """Stretches of the pools from a place that belongs to ``stream``; ``rows`` without and with padding."""
        used, padded = rows
        depth = blocks(width)
        starts = np.random.default_rng((self._seed, stream)).integers(0, _POOL, 3)
        codes, frac, f = (
            np.resize(np.roll(pool, -start), (padded, count))
            for pool, start, count in zip(self._pools[form.name], starts, (ROWS * depth, depth, depth), strict=True)
        )
        codes[:, width:] = codes[used:] = 0
        frac[used:], f[used:] = 0, MAX_FRACTION
        return QuantisedMatrix(codes, frac, f, (_scale_exponent(form, width),) * interleaved, form)


def _scale_exponent(form: WeightFormat, width: int) -> int:
    """S that gives a row of ``width`` weights a norm of about one."""
    mean_square = (form.largest * 11.5) ** 2 / 3 * np.mean(0.25 ** np.arange(_LARGEST_F + 1))
    return round(-math.log2(math.sqrt(width * mean_square)))
