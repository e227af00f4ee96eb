"""Drawn layers: reproducible, of the layouts that quantised layers have, with bounds that hold."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from host.driver import Device
from moe_hw.arch import ROWS, Arch
from moe_hw.formats import MAX_FRACTION, QuantisedMatrix
from moe_hw.image import LayerImage
from moe_hw.layer import random_layer
from moe_hw.presets import PRESETS
from moe_hw.quantised import QuantisedLayer, gain
from moe_hw.spec import LayerSpec
from moe_hw.synthetic import SyntheticLayer
from moe_hw.twins.layer import golden
from tests.host.fake import FakeTransport
from tests.host.support import ARCH
from tests.moe_hw.layers import SPECS


def matrices(layer: QuantisedLayer | SyntheticLayer) -> list[QuantisedMatrix]:
    experts = [layer.expert(index) for index in range(layer.spec.router.experts)]
    pairs = [expert for expert in (*experts, layer.shared) if expert is not None]
    return [layer.router, *(matrix for pair in pairs for matrix in pair)]


@pytest.mark.parametrize("weight_format", ["int4", "int8"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_layout_is_that_of_a_quantised_layer(spec: LayerSpec, weight_format: str) -> None:
    drawn = SyntheticLayer(spec, weight_format, seed=3)
    quantised = QuantisedLayer(random_layer(spec, 1), weight_format)
    for one, other in zip(matrices(drawn), matrices(quantised), strict=True):
        assert (one.codes.shape, one.codes.dtype) == (other.codes.shape, other.codes.dtype)
        assert (one.frac.shape, one.f.shape, one.format) == (other.frac.shape, other.f.shape, other.format)
        assert one.frac.dtype == one.f.dtype == np.uint8
        assert len(one.exponents) == len(other.exponents) and one.shift == other.shift
        assert np.abs(one.codes.astype(int)).max() <= one.format.largest
        # Padding is where the quantised layer has it: columns of zeros, and whole rows of zeros.
        unused = ~other.codes.any(axis=0)
        unused[spec.hidden_blocks * ROWS :] &= not spec.constant  # a digit of biases may be 0 in every row
        assert not one.codes[:, unused].any()
        empty = (other.f == MAX_FRACTION) & (other.frac == 0)
        empty[:, spec.hidden_blocks :] &= not spec.constant
        assert (one.f[empty] == MAX_FRACTION).all() and not one.frac[empty].any()
    assert drawn.descriptor.keys() == quantised.descriptor.keys()


def test_drawing_is_reproducible_and_experts_differ() -> None:
    spec = SPECS["blocks"]
    layers = [SyntheticLayer(spec, seed=seed) for seed in (1, 1, 2)]
    first, again, other = ([matrix.codes for matrix in matrices(layer)] for layer in layers)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(np.array_equal(one, two) for one, two in zip(first, other, strict=True))
    experts = first[1:-2:2]
    assert not any(np.array_equal(experts[0], expert) for expert in experts[1:])


@pytest.mark.parametrize("weight_format", ["int4", "int8"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_gain_bounds_every_expert(spec: LayerSpec, weight_format: str) -> None:
    layer = SyntheticLayer(spec, weight_format)
    assert max(gain(layer.expert(index), spec.expert) for index in range(spec.router.experts)) <= layer.routed_gain()


def test_activations_stay_of_order_one() -> None:
    layer = SyntheticLayer(PRESETS["granite-1b-a400m"].spec)
    result = golden(layer, torch.randn(3, 1024, generator=torch.Generator().manual_seed(0)))
    assert 0.1 < float(result.output.std()) < 10
    assert float(result.weights.max()) < 0.9


def test_the_image_holds_what_is_stored_and_a_device_needs_no_more() -> None:
    spec = SPECS["odd"]
    layer = SyntheticLayer(spec, "int8", seed=5)
    whole = {name: (offset, data) for name, offset, data in LayerImage(layer, Arch(columns=4)).segments()}
    x = torch.randn(2, spec.hidden, generator=torch.Generator().manual_seed(1))
    expected = golden(layer, x)
    layer.stored = expected.experts.unique().tolist()
    assert len(layer.stored) < spec.router.experts
    parts = list(LayerImage(layer, Arch(columns=4)).segments())
    names = ["descriptor", "router", *(f"expert {index}" for index in layer.stored), "shared"]
    assert [name for name, _, _ in parts] == names
    for name, offset, data in parts:
        assert offset == whole[name][0] and np.array_equal(data, whole[name][1])
    with Device(FakeTransport(ARCH)) as device:
        result = device.load(layer)(x)
    assert torch.equal(result.output, expected.output)


def test_a_large_expert_takes_no_time() -> None:
    layer = SyntheticLayer(PRESETS["mixtral-8x7b"].spec)
    layer.router, layer.expert(0)
    started = time.perf_counter()
    assert layer.expert(7).gate_up.codes.shape == (2 * 14336, 4096)
    assert time.perf_counter() - started < 5
