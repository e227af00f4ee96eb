"""The layer in floating point, as its model defines it: what the golden model's quantisation is measured against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import gelu, relu, silu, softplus

from moe_hw.errors import InputError
from moe_hw.layer import ExpertWeights, MoELayer
from moe_hw.result import Result
from moe_hw.routes import GivenRoutes
from moe_hw.spec import ExpertSpec, GroupSpec

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu,
    "gelu_tanh": lambda g: gelu(g, approximate="tanh"),
    "gelu": gelu,
    "quick_gelu": lambda g: g * torch.sigmoid(1.702 * g),
    "relu": relu,
    "relu2": lambda g: relu(g).square(),
}
"""The activation functions by the names of ``moe_hw.spec``."""

SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda logits: softplus(logits).sqrt(),
}
"""The scores by the names of ``moe_hw.spec``."""


def reference(layer: MoELayer, x: torch.Tensor, routes: GivenRoutes | None = None) -> Result:
    """The layer's result in float64, rounded to float32 at the end. Ties of logits go to the lower expert.

    Parameters:
        layer: the layer.
        x: activations ``[T, H]`` of any float type.
        routes: of the tokens, if the layer's spec says that they are given.

    Raises:
        InputError: ``x`` has another shape, or there are no routes.
    """
    spec = layer.spec
    if x.dim() != 2 or x.shape[1] != spec.hidden:
        raise InputError(f"tokens: expected shape [tokens, {spec.hidden}], got {list(x.shape)}")
    x = x.detach().double()
    experts, weights = _routes(layer, x) if routes is None else (routes.experts, routes.weights.double())

    output = torch.zeros_like(x)
    for index in experts[experts >= 0].unique().tolist():
        tokens, choice = torch.nonzero(experts == index, as_tuple=True)
        value = expert_output(spec.expert, spec.expert.limit, layer.expert(index), x[tokens])
        output[tokens] += weights[tokens, choice, None] * value
    shared = layer.shared()
    if shared is not None and spec.shared is not None:
        gate = layer.shared_gate_weight()
        weight: torch.Tensor | float = 1.0
        if gate is not None:
            weight = torch.sigmoid(x @ gate.double().T)
        elif routes is not None and routes.shared is not None:
            weight = routes.shared.double()[:, None]
        output += weight * expert_output(spec.expert, spec.shared.limit, shared, x)
    return Result(output.float(), experts, weights.float())


def _routes(layer: MoELayer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Choices and weights, ``[T, K]`` each."""
    spec, weight, bias = layer.spec.router, layer.router_weight(), layer.router_bias()
    if weight is None:
        raise InputError("routes: expected the tokens' choices and weights, got none; the layer has no router")
    logits = x @ weight.double().T
    if bias is not None:
        logits += bias.double()
    scores = SCORES[spec.score](logits)
    keys, correction = scores if spec.keyed == "score" else logits, layer.correction()
    if correction is not None:
        keys = keys + correction.double()
    if spec.groups is not None:
        keys = _in_groups(spec.groups, keys)
    experts = _ranked(keys)[:, : spec.top_k]
    weights = scores.gather(1, experts)
    if spec.normalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + spec.epsilon)
    return experts, weights * spec.scale


def _ranked(keys: torch.Tensor) -> torch.Tensor:
    """Indices by descending key, ties to the lower one."""
    return keys.sort(dim=-1, descending=True, stable=True).indices


def _in_groups(groups: GroupSpec, keys: torch.Tensor) -> torch.Tensor:
    """The keys of the groups that are kept; the others' are zeros or out of reach."""
    members = keys.unflatten(1, (groups.count, -1))
    largest = members.topk(2 if groups.score == "two" else 1, dim=-1).values
    left_out = _ranked(largest.sum(dim=-1))[:, groups.kept :]
    places = left_out[:, :, None].expand(-1, -1, members.shape[2])
    return members.scatter(1, places, 0.0 if groups.zero else -torch.inf).flatten(1)


def hidden_activations(
    spec: ExpertSpec, limit: float | None, gate: torch.Tensor, up: torch.Tensor | None
) -> torch.Tensor:
    """The activation of a gate, with the limits and softcaps; times up, if there is one."""
    if limit is not None and spec.clamp == "before":
        gate = gate.clamp(max=limit)
    factor = gate
    gate = ACTIVATIONS[spec.activation](gate)
    if spec.gate_softcap is not None:
        gate = gate * torch.where(factor == 0, 1.0, softcapped(factor, spec.gate_softcap) / factor)
    if limit is not None and spec.clamp == "after":
        gate = gate.clamp(max=limit)
    if up is None:
        return gate
    up = (up if limit is None else up.clamp(-limit, limit)) + spec.up_offset
    return gate * softcapped(up, spec.up_softcap)


def softcapped(value: torch.Tensor, cap: float | None) -> torch.Tensor:
    """``cap * tanh(value / cap)``; the value itself if there is no cap."""
    return value if cap is None else cap * torch.tanh(value / cap)


def expert_output(spec: ExpertSpec, limit: float | None, weights: ExpertWeights, x: torch.Tensor) -> torch.Tensor:
    """An expert's output in float64."""
    gate, up, down, gate_bias, up_bias, down_bias = (None if part is None else part.double() for part in weights)
    assert up is not None and down is not None

    def linear(matrix: torch.Tensor, bias: torch.Tensor | None, vectors: torch.Tensor) -> torch.Tensor:
        return vectors @ matrix.T if bias is None else vectors @ matrix.T + bias

    value = linear(up, up_bias, x)
    gates, ups = (value, None) if gate is None else (linear(gate, gate_bias, x), value)
    return linear(down, down_bias, hidden_activations(spec, limit, gates, ups))
