"""Quantised layers: their matrices, their descriptor, the bound on a combine word and what stays in memory."""

from __future__ import annotations

from math import ceil, log2

import numpy as np
import pytest
import torch

from moe_hw import quantised as module
from moe_hw.errors import ModelError, UsageError
from moe_hw.formats import FORMATS
from moe_hw.layer import ExpertWeights, MoELayer, random_layer
from moe_hw.quantised import QuantisedExpert, QuantisedLayer
from moe_hw.registers import LAYER
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec
from tests.moe_hw.layers import SPECS


def constant_layer(values: list[tuple[float, float, float]]) -> MoELayer:
    """A layer whose expert ``i`` has matrices filled with ``values[i]``."""
    hidden, inter = 3, 2

    def expert(index: int) -> ExpertWeights:
        gate, up, down = values[index]
        return ExpertWeights(
            torch.full((inter, hidden), gate), torch.full((inter, hidden), up), torch.full((hidden, inter), down)
        )

    spec = LayerSpec(hidden, RouterSpec(len(values), 1), ExpertSpec(inter))
    return MoELayer(spec, router=torch.zeros(len(values), hidden), expert=expert)


@pytest.mark.parametrize("form", ["int4", "int8"])
@pytest.mark.parametrize("name", SPECS)
def test_matrices_are_padded_and_interleaved(name: str, form: str) -> None:
    spec = SPECS[name]
    layer = random_layer(spec, 1)
    quantised = QuantisedLayer(layer, form)
    index = spec.router.experts - 1
    gate_up, down = quantised.expert(index)
    assert gate_up.codes.shape == (64 * spec.inter_blocks, 32 * spec.hidden_blocks)
    assert down.codes.shape == (32 * spec.hidden_blocks, 32 * spec.inter_blocks)
    assert quantised.router.codes.shape == (spec.router_rows, 32 * spec.hidden_blocks)
    inter, hidden, weights = spec.expert.intermediate, spec.hidden, layer.expert(index)
    step = 1 / FORMATS[form].largest  # A scale is at most 9/8 of what the largest weight needs.
    values = gate_up.dequantise()
    np.testing.assert_allclose(values[0 : 2 * inter : 2, :hidden], weights.gate, atol=step * weights.gate.abs().max())
    np.testing.assert_allclose(values[1 : 2 * inter : 2, :hidden], weights.up, atol=step * weights.up.abs().max())
    np.testing.assert_allclose(down.dequantise()[:hidden, :inter], weights.down, atol=step * weights.down.abs().max())
    assert not values[2 * inter :].any() and not values[:, hidden:].any() and not down.dequantise()[hidden:].any()


def test_the_shared_experts_gate_is_the_routers_last_row() -> None:
    layer = random_layer(SPECS["odd"], 2)
    gate = layer.shared_gate_weight()
    assert gate is not None
    np.testing.assert_allclose(QuantisedLayer(layer).router.dequantise()[5:, :33], gate, atol=1e-4)


def test_scale_exponents_are_the_largest_of_all_experts() -> None:
    quantised = QuantisedLayer(constant_layer([(1, 2, 4), (64, 1, 1 / 64)]), "int8")
    small, large = quantised.expert(0), quantised.expert(1)
    assert small.gate_up.exponents == large.gate_up.exponents and small.down.exponents == large.down.exponents
    assert large.gate_up.f[0, 0] == 0 and small.gate_up.f[0, 0] == 6
    assert small.gate_up.f[1, 0] == 0 and small.down.f[0, 0] == 0


def test_descriptor_of_an_odd_layer() -> None:
    quantised = QuantisedLayer(random_layer(SPECS["odd"], 1), "int8")
    words = quantised.descriptor()
    sizes = {"hidden_blocks": 2, "inter_blocks": 2, "shared_blocks": 1, "experts": 5, "top_k": 2, "normalise": 1,
             "shared_gate": 1, "passes": 2, "shared_passes": 2, "router_passes": 4}  # fmt: skip
    assert {name: words[name] for name in sizes} == sizes
    gate, up = quantised.expert(0).gate_up.exponents
    shift = min(24 - 4, 46 - (5 + 7 + 7 + 4) - 1)
    assert words["up_shift"] == words["down_shift"] == words["shared_up_shift"] == shift
    assert (words["gate_exponent"], words["up_exponent"]) == (8 + gate - shift, 8 + up - shift)
    assert words["down_exponent"] == quantised.expert(0).down.exponents[0] - shift
    assert words["router_exponent"] == quantised.router.exponents[0] - words["router_shift"]
    addresses = {name for name in LAYER.index if name.endswith(("address", "stride")) or name in ("magic",)}
    assert set(LAYER.index) - set(words) == addresses | {"expert_down", "shared_down"}
    LAYER.pack(words)


def test_descriptor_without_a_shared_expert() -> None:
    words = QuantisedLayer(random_layer(SPECS["ones"])).descriptor()
    assert words["shared_blocks"] == words["shared_gate"] == 0
    assert not {name for name in words if name.startswith("shared_")} - {"shared_blocks", "shared_gate"}


@pytest.mark.parametrize("form", ["int4", "int8"])
@pytest.mark.parametrize("name", SPECS)
def test_combine_exponent_is_the_bound_of_the_definition(name: str, form: str) -> None:
    quantised = QuantisedLayer(random_layer(SPECS[name], 7), form)

    def gain(expert: QuantisedExpert) -> float:
        gate_up, down = expert.gate_up.dequantise(), expert.down.dequantise()
        norm = np.linalg.norm
        return norm(down, axis=1).max() * norm(gate_up[0::2]) * norm(gate_up[1::2], axis=1).max()

    gains = [gain(quantised.expert(index)) for index in range(quantised.spec.router.experts)]
    shared = gain(quantised.shared) if quantised.shared else 0
    bound = (max(gains) + shared) * 32 * quantised.spec.hidden_blocks * 2.0**31
    assert quantised.combine_exponent == ceil(log2(bound)) - 46


def test_combine_exponent_of_zeros() -> None:
    assert QuantisedLayer(constant_layer([(0, 0, 0), (1, 1, 0)])).combine_exponent == 0


@pytest.mark.parametrize(("gain", "exponent"), [(1.0, 0), (1.0001, 1), (0.9999, 0), (0.5, -1)])
def test_the_bound_is_rounded_up_to_a_power_of_two(monkeypatch: pytest.MonkeyPatch, gain: float, exponent: int) -> None:
    monkeypatch.setattr(module, "_gain", lambda expert: gain)
    assert QuantisedLayer(random_layer(SPECS["ones"])).combine_exponent == exponent + 5 + 31 - 46


def test_only_a_few_experts_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    quantised = QuantisedLayer(random_layer(SPECS["blocks"]), "int4")
    first = quantised.expert(0)
    assert quantised.expert(0) is first
    monkeypatch.setattr(module, "CACHE_BYTES", 2 * first.nbytes)
    quantised.expert(1)
    assert quantised.expert(0) is first
    quantised.expert(2)
    assert quantised.expert(0) is first
    assert len(quantised._kept) == 2
    assert np.array_equal(quantised.expert(1).down.codes, QuantisedLayer(quantised.layer).expert(1).down.codes)


def test_weights_that_are_not_finite_are_named() -> None:
    with pytest.raises(ModelError, match="expert 1 up: expected finite weights"):
        QuantisedLayer(constant_layer([(1, 1, 1), (1, float("nan"), 1)])).expert(0)


def test_an_unknown_format() -> None:
    with pytest.raises(UsageError, match="expected int4 or int8, got 'fp8'"):
        QuantisedLayer(random_layer(SPECS["ones"]), "fp8")
