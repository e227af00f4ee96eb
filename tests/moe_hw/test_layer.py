"""Access to a layer's weights."""

from __future__ import annotations

import pytest
import torch

from moe_hw.errors import ModelError
from moe_hw.layer import ExpertWeights, MoELayer, random_layer
from tests.moe_hw.layers import SPECS

SPEC = SPECS["odd"]


def weights(inter: int = 45, hidden: int = 33) -> ExpertWeights:
    return ExpertWeights(torch.zeros(inter, hidden), torch.zeros(inter, hidden), torch.zeros(hidden, inter))


@pytest.mark.parametrize("name", SPECS)
def test_random_layers_have_their_specs_shapes(name: str) -> None:
    spec = SPECS[name]
    layer = random_layer(spec, seed=1)
    inter, gated = spec.expert.intermediate, spec.expert.gated
    router, bias = layer.router_weight(), layer.router_bias()
    assert router is not None and router.shape == (spec.router.experts, spec.hidden)
    assert (bias is not None) == spec.router.bias
    shapes = [(inter, spec.hidden)] * (1 + gated) + [(spec.hidden, inter)]
    if spec.expert.bias:
        shapes += [(inter,)] * (1 + gated) + [(spec.hidden,)]
    for index in range(spec.router.experts):
        assert [tuple(w.shape) for w in layer.expert(index) if w is not None] == shapes
    assert (layer.shared() is None) == (spec.shared is None)
    assert (layer.shared_gate_weight() is None) == (not spec.shared_gate)


def test_random_layers_repeat_and_depend_on_the_seed() -> None:
    first, again, other = random_layer(SPEC, 3), random_layer(SPEC, 3), random_layer(SPEC, 4)
    assert torch.equal(first.expert(2).up, again.expert(2).up)
    assert not torch.equal(first.expert(2).up, other.expert(2).up)
    assert not torch.equal(first.expert(2).up, first.expert(1).up)


def test_weights_become_float32_when_asked_for() -> None:
    asked = []

    def expert(index: int) -> ExpertWeights:
        asked.append(index)
        return ExpertWeights(*(matrix.bfloat16() for matrix in weights() if matrix is not None))

    layer = MoELayer(SPECS["odd"], router=torch.zeros(5, 33).half(), expert=expert, shared=lambda: weights(7),
                     shared_gate=torch.zeros(1, 33))  # fmt: skip
    assert not asked
    assert layer.expert(3).gate.dtype == layer.router_weight().dtype == torch.float32
    assert asked == [3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": torch.zeros(4, 33)}, r"router: expected a weight of shape \[5, 33\], got \[4, 33\]"),
        ({"shared_gate": torch.zeros(33)}, r"shared_expert_gate: expected a weight of shape \[1, 33\], got \[33\]"),
        ({"shared_gate": None}, "shared expert's gate: expected one as in the spec"),
        ({"shared": None}, "shared expert: expected one as in the spec"),
        ({"router": None}, "router: expected one as in the spec"),
        ({"router_bias": torch.zeros(5)}, "router's bias: expected none as in the spec"),
    ],
)
def test_weights_that_contradict_the_spec(changes: dict[str, object], message: str) -> None:
    arguments = {
        "router": torch.zeros(5, 33),
        "expert": lambda index: weights(),
        "shared": lambda: weights(7),
        "shared_gate": torch.zeros(1, 33),
    }
    with pytest.raises(ModelError, match=message):
        MoELayer(SPEC, **(arguments | changes))  # type: ignore[arg-type]


def test_an_expert_of_another_shape_is_named() -> None:
    layer = MoELayer(SPECS["all experts"], router=torch.zeros(7, 31), expert=lambda index: weights(65, 30))
    with pytest.raises(ModelError, match=r"expert 4 gate: expected a weight of shape \[65, 31\], got \[65, 30\]"):
        layer.expert(4)


def test_a_part_that_contradicts_the_spec_is_named() -> None:
    spec = SPECS["relu"]
    layer = MoELayer(spec, router=torch.zeros(4, 40), expert=lambda index: weights(33, 40), shared=lambda: weights(64))
    with pytest.raises(ModelError, match="expert 1 gate: expected none as in the spec"):
        layer.expert(1)
    biased = weights()._replace(up_bias=torch.zeros(45))
    layer = MoELayer(SPEC, router=torch.zeros(5, 33), expert=lambda index: biased, shared=lambda: weights(7),
                     shared_gate=torch.zeros(1, 33))  # fmt: skip
    with pytest.raises(ModelError, match="expert 2 up_bias: expected none as in the spec"):
        layer.expert(2)
