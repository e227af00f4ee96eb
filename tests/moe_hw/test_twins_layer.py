"""The golden model: against the float reference, and what its integers promise exactly."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_hw.errors import InputError, ModelError
from moe_hw.formats import FORMATS, quantise_tokens
from moe_hw.layer import ExpertWeights, MoELayer, random_layer
from moe_hw.quantised import QuantisedLayer
from moe_hw.reference import expert_output, reference
from moe_hw.result import Result
from moe_hw.routes import GivenRoutes
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec
from moe_hw.twins.array import accumulate, expert_operand
from moe_hw.twins.layer import expert_accumulators, golden
from moe_hw.twins.post import Form
from tests.moe_hw.layers import SPECS

SMALLEST_SQNR = {"int4": 11.0, "int8": 30.0}
"""Decibels; a step halves with each bit, so int8 is about 24 dB above int4 but for the hidden activations' 8 bits."""


def draw(tokens: int, hidden: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed))


def sqnr(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float(10 * torch.log10(exact.square().sum() / (result - exact).square().sum()))


def assert_equal(one: Result, other: Result) -> None:
    assert torch.equal(one.output, other.output)
    assert torch.equal(one.experts, other.experts)
    assert torch.equal(one.weights, other.weights)


@pytest.mark.parametrize("form", ["int4", "int8"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("shared", [None, SharedSpec(90, gated=False), SharedSpec(65, gated=True)])
@pytest.mark.parametrize(("hidden", "inter", "experts", "top_k"), [(257, 129, 5, 2), (128, 320, 16, 8)])
def test_close_to_the_reference(
    hidden: int, inter: int, experts: int, top_k: int, shared: SharedSpec | None, normalise: bool, form: str
) -> None:
    spec = LayerSpec(hidden, RouterSpec(experts, top_k, normalise=normalise), ExpertSpec(inter), shared)
    layer, x = random_layer(spec, seed=hidden), draw(19, hidden)
    result, exact = golden(layer, x, form), reference(layer, x)
    assert sqnr(result.output, exact.output) >= SMALLEST_SQNR[form]
    assert torch.equal(result.experts, exact.experts)
    torch.testing.assert_close(result.weights, exact.weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("score", ["softmax", "sqrtsoftplus"])
def test_a_width_for_each_expert(score: str) -> None:
    """Tokens of wide experts come out as in a wide layer, or nearly: the others may have the larger scales."""
    layer, x = random_layer(LayerSpec(96, RouterSpec(6, 1, score), ExpertSpec(64)), seed=3), draw(60, 96)
    exact, narrow, wide = reference(layer, x), golden(layer, x, "int4"), golden(layer, x, "int8")
    mixed = golden(layer, x, "int4,1-2=int8,5=int2")
    assert torch.equal(mixed.experts, wide.experts) and torch.equal(mixed.weights, wide.weights)
    found = {}
    for expert in range(6):
        mine = exact.experts[:, 0] == expert
        found[expert] = sqnr(mixed.output[mine], exact.output[mine])
        if expert in (1, 2):
            assert found[expert] > sqnr(wide.output[mine], exact.output[mine]) - 1
        elif expert != 5:
            assert abs(found[expert] - sqnr(narrow.output[mine], exact.output[mine])) < 1
    assert found[5] < 5 < min(found[0], found[3], found[4]) < 25 < min(found[1], found[2])
    # The formats of all experts, said one by one, are the format of the layer.
    assert_equal(golden(layer, x, "int4,0-5=int8"), wide)


@pytest.mark.parametrize("name", SPECS)
def test_types_and_shapes(name: str) -> None:
    spec = SPECS[name]
    result = golden(random_layer(spec), draw(3, spec.hidden))
    assert result.output.shape == (3, spec.hidden) and result.output.dtype == torch.float32
    assert result.experts.shape == (3, spec.router.top_k) and result.experts.dtype == torch.int64
    assert result.weights.shape == result.experts.shape and result.weights.dtype == torch.float32
    assert result.report is None and not (result.experts == spec.router.experts).any()


@pytest.mark.parametrize("name", SPECS)
@given(seed=st.integers(0, 1000), data=st.data())
@settings(deadline=None, max_examples=5)
def test_permuting_tokens_permutes_results(name: str, seed: int, data: st.DataObject) -> None:
    layer, x = QuantisedLayer(random_layer(SPECS[name])), draw(6, SPECS[name].hidden, seed)
    order = torch.tensor(data.draw(st.permutations(range(6))))
    whole = golden(layer, x)
    assert_equal(golden(layer, x[order]), Result(whole.output[order], whole.experts[order], whole.weights[order]))


@pytest.mark.parametrize("name", SPECS)
@given(seed=st.integers(0, 1000), cut=st.integers(0, 6))
@settings(deadline=None, max_examples=5)
def test_splitting_a_batch_changes_nothing(name: str, seed: int, cut: int) -> None:
    layer, x = QuantisedLayer(random_layer(SPECS[name])), draw(6, SPECS[name].hidden, seed)
    parts = [golden(layer, x[:cut]), golden(layer, x[cut:])]
    joined = Result(*(torch.cat([getattr(part, key) for part in parts]) for key in ("output", "experts", "weights")))
    assert_equal(golden(layer, x), joined)


@given(seed=st.integers(0, 1000), data=st.data())
@settings(deadline=None, max_examples=5)
def test_renumbering_experts_renumbers_choices_alone(seed: int, data: st.DataObject) -> None:
    spec, x = SPECS["blocks"], draw(5, 128, seed)
    layer = random_layer(spec)
    order = data.draw(st.permutations(range(16)))
    renumbered = MoELayer(
        spec,
        router=layer.router_weight()[order],
        expert=lambda index: layer.expert(order[index]),
        shared=lambda: layer.shared() or pytest.fail("no shared expert"),
        shared_gate=layer.shared_gate_weight(),
    )
    one, other = golden(layer, x), golden(renumbered, x)
    assert torch.equal(one.output, other.output) and torch.equal(one.weights, other.weights)
    assert torch.equal(one.experts, torch.tensor(order)[other.experts])


@given(seed=st.integers(0, 1000), power=st.integers(-60, 60))
@settings(deadline=None, max_examples=10)
def test_powers_of_two_leave_the_accumulators(seed: int, power: int) -> None:
    layer, x = QuantisedLayer(random_layer(SPECS["odd"])), draw(4, 33, seed).double()
    one, other = quantise_tokens(x), quantise_tokens(x * 2.0**power)
    gate_up = layer.expert(1).gate_up
    assert np.array_equal(accumulate(gate_up, expert_operand(one)), accumulate(gate_up, expert_operand(other)))
    assert np.array_equal(one.exponent + power, other.exponent)


def test_large_tokens_are_of_degree_two() -> None:
    """Where the sigmoid has saturated, scaling a token by 2 scales a lone expert's output by 4, exactly."""
    spec = LayerSpec(64, RouterSpec(1, 1), ExpertSpec(32))
    layer, x = QuantisedLayer(random_layer(spec)), draw(4, 64) * 2.0**30
    assert torch.equal(4 * golden(layer, x).output, golden(layer, 2 * x).output)


@pytest.mark.parametrize(("activation", "degree"), [("relu", 1), ("relu2", 2)])
@pytest.mark.parametrize("power", [-20, -1, 3, 20])
def test_homogeneous_experts_scale_exactly(activation: str, degree: int, power: int) -> None:
    """Two layers without biases: the only place where the absolute size counts is the router."""
    spec = LayerSpec(45, RouterSpec(4, 2, score="given"), ExpertSpec(70, activation, gated=False))
    layer, x = QuantisedLayer(random_layer(spec)), draw(6, 45)
    routes = GivenRoutes(torch.tensor([[0, 1], [2, 3], [1, 3], [3, 0], [2, -1], [-1, -1]]), draw(6, 2, 1).abs())
    one, other = golden(layer, x, routes=routes), golden(layer, x * 2.0**power, routes=routes)
    assert one.output.abs().max() > 0.1 and not one.output[5].any()
    assert torch.equal(one.output * 2.0 ** (degree * power), other.output)


def test_given_routes_are_those_of_the_router() -> None:
    """Choices and weights of a layer's own router, given to the same experts, make the same outputs."""
    own = random_layer(SPECS["odd"], 3)
    spec = LayerSpec(33, RouterSpec(5, 2, score="given"), ExpertSpec(45), SharedSpec(7, gated=False))
    given = MoELayer(spec, expert=own.expert, shared=own.shared)
    x = draw(9, 33)
    result = golden(own, x, "int8")
    gate = own.shared_gate_weight()
    assert gate is not None
    routes = GivenRoutes(result.experts, result.weights, torch.sigmoid(x @ gate.T)[:, 0])
    assert sqnr(golden(given, x, "int8", routes).output, result.output) > 80
    assert sqnr(golden(given, x, "int8", routes).output, reference(given, x, routes).output) > SMALLEST_SQNR["int8"]


def test_no_expert_is_quantised_but_those_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantisedLayer(random_layer(LayerSpec(33, RouterSpec(5, 1, "given"), ExpertSpec(17, limit=1.0)), 1))
    x, routes = torch.ones(3, 33), GivenRoutes(torch.tensor([[3], [1], [3]]), torch.ones(3, 1))
    first = golden(layer, x, routes=routes)
    quantise, read = layer.expert, []
    monkeypatch.setattr(layer, "expert", lambda index: read.append(index) or quantise(index))
    assert torch.equal(golden(layer, x, routes=routes).output, first.output)
    assert read == [1, 3]


def test_routes_that_are_missing_are_asked_for() -> None:
    spec = LayerSpec(33, RouterSpec(5, 2, score="given"), ExpertSpec(45))
    for function in (golden, reference):
        with pytest.raises(InputError, match="routes: expected the tokens' choices and weights, got none"):
            function(random_layer(spec), draw(2, 33))


@pytest.mark.parametrize("scale", [0.0, 2.0**-120, 2.0**-90, 2.0**-30, 2.0**60, 2.0**99])
def test_any_magnitude(scale: float) -> None:
    result = golden(random_layer(SPECS["odd"]), torch.full((2, 33), scale))
    assert torch.isfinite(result.output).all() and torch.isfinite(result.weights).all()
    assert result.output.any() == (scale > 2.0**-60)


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_the_worst_input_does_not_overflow(form: str) -> None:
    """All weights and activations at the same sign and magnitude, where Cauchy-Schwarz is tight."""
    value = FORMATS[form].largest / 8
    equal = ExpertWeights(*(torch.full(shape, value) for shape in ((64, 96), (64, 96), (96, 64))))
    spec = LayerSpec(96, RouterSpec(3, 3), ExpertSpec(64), SharedSpec(64, gated=False))
    layer = MoELayer(spec, router=torch.zeros(3, 96), expert=lambda index: equal, shared=lambda: equal)
    x = torch.full((1, 96), 32639.0)
    result, exact = golden(layer, x, form), reference(layer, x)
    torch.testing.assert_close(result.output, exact.output, rtol=0.02, atol=0)


def test_a_combine_exponent_that_is_too_small_is_reported() -> None:
    layer = QuantisedLayer(random_layer(SPECS["odd"]))
    layer.__dict__["combine_exponent"] = -60
    with pytest.raises(ModelError, match="a result saturated: expected combine_exponent to bound every sum"):
        golden(layer, draw(2, 33))


def test_down_accumulators_stand_for_the_expert() -> None:
    layer, x = random_layer(SPECS["odd"], 5), draw(3, 33)
    d, a_down = expert_accumulators(QuantisedLayer(layer, "int8").expert(2), Form(), quantise_tokens(x))
    exact = expert_output(layer.spec.expert, None, layer.expert(2), x.double())
    assert sqnr(torch.from_numpy(np.ldexp(d.astype(float), a_down[:, None])[:, :33]), exact) > 30


def test_no_tokens() -> None:
    result = golden(random_layer(SPECS["odd"]), torch.zeros(0, 33))
    assert result.output.shape == (0, 33) and result.experts.shape == result.weights.shape == (0, 2)


@pytest.mark.parametrize("shape", [(2, 32), (33,), (1, 2, 33)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"tokens: expected shape \[tokens, 33\], got"):
        golden(random_layer(SPECS["odd"]), torch.zeros(shape))


def test_real_sizes_take_seconds() -> None:
    """64 tokens through 128 experts of 2048 x 768, eight a token; one expert's weights stand for all of them."""
    spec = LayerSpec(2048, RouterSpec(128, 8), ExpertSpec(768))
    drawn = random_layer(spec)
    weights = drawn.expert(0)
    layer = QuantisedLayer(MoELayer(spec, router=drawn.router_weight(), expert=lambda index: weights))
    expert = layer.expert(0)
    layer.__dict__.update(expert=lambda index: expert, combine_exponent=20)
    started = time.process_time()
    result = golden(layer, draw(64, 2048))
    assert result.experts.unique().numel() > 100
    assert time.process_time() - started < 30  # CPU seconds: about 8 on two cores
