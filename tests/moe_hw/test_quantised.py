"""Quantised layers: their matrices, their descriptor, the bound on a combine word and what stays in memory."""

from __future__ import annotations

from math import ceil, log2, nan

import numpy as np
import pytest
import torch

from moe_hw import quantised as module
from moe_hw.errors import ModelError, UsageError
from moe_hw.formats import CONSTANT_EXPONENT, CONSTANTS, FORMATS, ROUTER, WeightFormat, quantise_tokens
from moe_hw.layer import ExpertWeights, MoELayer, random_layer
from moe_hw.quantised import Affine, QuantisedExpert, QuantisedLayer, correction_table, hidden_constants
from moe_hw.registers import LAYER
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec
from moe_hw.twins.array import accumulate, expert_operand
from moe_hw.twins.layer import form_of
from moe_hw.twins.post import activate, requantise
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
    first, gated = spec.first_matrices, spec.expert.gated
    assert gate_up.codes.shape == (32 * first * spec.inter_blocks, 32 * spec.input_blocks)
    assert down.codes.shape == (32 * spec.hidden_blocks, 32 * spec.inter_blocks)
    assert quantised.router is not None
    assert quantised.router.codes.shape == (spec.router_rows, 32 * spec.input_blocks)
    inter, hidden, weights = spec.expert.intermediate, spec.hidden, layer.expert(index)
    step = 1 / FORMATS[form].largest  # A scale is at most 9/8 of what the largest weight needs.
    values = gate_up.dequantise()
    matrices = [(values[gated : first * inter : first, :hidden], weights.up)]
    matrices += [(values[0 : 2 * inter : 2, :hidden], weights.gate)] if weights.gate is not None else []
    for found, wanted in (*matrices, (down.dequantise()[:hidden, :inter], weights.down)):
        np.testing.assert_allclose(found, wanted, atol=step * float(wanted.abs().max()))
    padding = values[:, hidden : 32 * spec.hidden_blocks]
    assert not padding.any() and not down.dequantise()[hidden:].any()
    assert spec.expert.bias or not values[first * inter :, : 32 * spec.hidden_blocks].any()
    if spec.expert.bias:
        assert weights.up_bias is not None and weights.down_bias is not None
        constants = CONSTANTS * 2.0**CONSTANT_EXPONENT
        up_bias = values[gated : first * inter : first, -32:] @ constants
        np.testing.assert_allclose(up_bias, weights.up_bias + spec.expert.up_offset, rtol=2.0**-11)
        exponent = hidden_constants(spec.expert)[2]
        down_bias = down.dequantise()[:hidden, -32:] @ (CONSTANTS * 2.0**exponent)
        np.testing.assert_allclose(down_bias, weights.down_bias, rtol=2.0**-11)


@pytest.mark.parametrize("form", [ROUTER, *FORMATS.values()], ids=str)
def test_biases_of_half_precision_are_exact(form: WeightFormat) -> None:
    bias = torch.randn(64, generator=torch.Generator().manual_seed(1)) * 2.0 ** torch.arange(-12, 4).repeat(4)
    for kind in (torch.bfloat16, *([torch.float16] if form.bits > 2 else [])):
        values = bias.to(kind).float()
        affine = Affine("bias", torch.zeros(64, 32), values)
        matrix = affine.quantise(form, affine.scale_exponent(form), 64)
        found = matrix.dequantise()[:, 32:] @ (CONSTANTS * 2.0**CONSTANT_EXPONENT)
        assert np.array_equal(found, values.numpy().astype(np.float64))


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.expert.bias])
@pytest.mark.parametrize("power", [-20, 0, 4, 8])
def test_hidden_constants_are_the_constants_of_tokens_of_any_size(name: str, power: int) -> None:
    """The last block of hidden activations, whatever the token."""
    layer = QuantisedLayer(random_layer(SPECS[name], 3))
    tokens = quantise_tokens(torch.randn(7, layer.spec.hidden) * 2.0**power, constant=True)
    gate_up, form = layer.expert(0).gate_up, form_of(layer)
    acc = accumulate(gate_up, expert_operand(tokens))
    base = tokens.exponent[:, None] + 8 - gate_up.shift
    first = layer.spec.first_matrices
    values = activate(
        acc[:, 0::first], acc[:, first - 1 :: first], base + gate_up.exponents[0], base + gate_up.exponents[-1], form
    )
    mantissas, exponents = requantise(*values)
    assert (mantissas[:, -1] == CONSTANTS).all()
    assert (exponents[:, -1] == hidden_constants(layer.spec.expert)[2]).all()


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
    words = quantised.descriptor
    sizes = {"hidden_blocks": 2, "inter_blocks": 2, "shared_blocks": 1, "experts": 5, "top_k": 2, "normalise": 1,
             "shared_gate": 1, "shared_bits": 8, "router_bits": 16}  # fmt: skip
    assert {name: words[name] for name in sizes} == sizes
    gate, up = quantised.expert(0).gate_up.exponents
    shift = min(24 - 4, 46 - (5 + 7 + 7 + 4) - 1)
    assert words["up_shift"] == words["down_shift"] == words["shared_up_shift"] == shift
    assert (words["gate_exponent"], words["up_exponent"]) == (8 + gate - shift, 8 + up - shift)
    assert words["down_exponent"] == quantised.expert(0).down.exponents[0] - shift
    assert words["router_exponent"] == quantised.router.exponents[0] - words["router_shift"]
    addresses = {name for name in LAYER.index if name.endswith(("address", "stride")) or name in ("magic",)}
    of_others = {"correction", "correction_shift"}
    of_others |= {name for name in LAYER.index if "group" in name}
    assert set(LAYER.index) - set(words) == addresses | {"expert_down", "shared_down"} | of_others
    LAYER.pack(words)


def test_descriptor_without_a_shared_expert() -> None:
    words = QuantisedLayer(random_layer(SPECS["ones"])).descriptor
    assert words["shared_blocks"] == words["shared_gate"] == 0
    assert not {name for name in words if name.startswith("shared_")} - {"shared_blocks", "shared_gate"}


@pytest.mark.parametrize("form", ["int4", "int8"])
@pytest.mark.parametrize("name", SPECS)
def test_combine_exponent_is_the_bound_of_the_definition(name: str, form: str) -> None:
    quantised = QuantisedLayer(random_layer(SPECS[name], 7), form)

    def gain(expert: QuantisedExpert) -> float:
        gate_up, down = expert.gate_up.dequantise(), expert.down.dequantise()
        norm = np.linalg.norm
        spec = quantised.spec.expert
        if spec.degree == 1:
            return norm(down, axis=1).max() * norm(gate_up)
        gate, up = (gate_up[0::2], gate_up[1::2]) if spec.gated else (gate_up, gate_up)
        return norm(down, axis=1).max() * norm(gate) * norm(up, axis=1).max()

    gains = [gain(quantised.expert(index)) for index in range(quantised.spec.router.experts)]
    shared = gain(quantised.shared) if quantised.shared else 0
    length = 32 * quantised.spec.input_blocks * 2.0**30  # of a token, squared
    weights = quantised.spec.router.weight_bound
    bound = (weights * max(gains) + shared) * 2 * length ** (quantised.spec.expert.degree / 2)
    assert quantised.combine_exponent == ceil(log2(bound)) - 46


def test_combine_exponent_of_zeros() -> None:
    assert QuantisedLayer(constant_layer([(0, 0, 0), (1, 1, 0)])).combine_exponent == 0


@pytest.mark.parametrize(("gain", "exponent"), [(1.0, 0), (1.0001, 1), (0.9999, 0), (0.5, -1)])
def test_the_bound_is_rounded_up_to_a_power_of_two(monkeypatch: pytest.MonkeyPatch, gain: float, exponent: int) -> None:
    monkeypatch.setattr(module, "gain", lambda expert, spec: gain)
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
    with pytest.raises(UsageError, match="expected int2 or .* or mxfp4, got 'fp8'"):
        QuantisedLayer(random_layer(SPECS["ones"]), "fp8")


def test_descriptor_of_a_router_with_groups() -> None:
    words = QuantisedLayer(random_layer(SPECS["deepseek-v3"])).descriptor
    expected = {"score": 1, "epsilon": 1, "correction": 1, "correction_shift": 0, "groups": 4, "group_size": 3}
    assert {name: words[name] for name in expected} == expected
    assert (words["kept_groups"], words["group_sum"], words["group_zero"]) == (2, 1, 0)
    assert QuantisedLayer(random_layer(SPECS["shares of sigmoids"])).descriptor["epsilon"] == round(1e-3 * 2**30)
    assert QuantisedLayer(random_layer(SPECS["corrected logits"])).descriptor["correction"] == 2
    assert words["scale"] == (-14 & 0xFFF) << 16 | round(2.5 * 2**14)


@pytest.mark.parametrize(("largest", "shift"), [(0.0, 0), (1.99, 0), (2.0, 1), (-2.0, 1), (1000.0, 9), (32767.0, 14)])
def test_a_correction_table_has_the_smallest_units(largest: float, shift: int) -> None:
    bias = torch.tensor([largest, 0.3, -0.1])
    table, found = correction_table("bias", bias)
    assert found == shift and table.dtype == np.int32
    np.testing.assert_allclose(np.ldexp(table.astype(float), shift - 30), bias.double(), atol=2.0 ** (shift - 31))


@pytest.mark.parametrize(("value", "message"), [(2.0**15, "expected magnitudes below 2.15, got 32768"), (nan, "NaN")])
def test_a_correction_that_has_no_table(value: float, message: str) -> None:
    with pytest.raises(ModelError, match=f"bias: .*{message}"):
        correction_table("bias", torch.tensor([value, 0.0]))
