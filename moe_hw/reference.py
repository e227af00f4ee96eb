"""The layer in floating point, as its model defines it: what the golden model's quantisation is measured against."""

from __future__ import annotations

import torch
from torch.nn.functional import silu

from moe_hw.errors import InputError
from moe_hw.layer import ExpertWeights, MoELayer
from moe_hw.result import Result


def reference(layer: MoELayer, x: torch.Tensor) -> Result:
    """The layer's result in float64, rounded to float32 at the end. Ties of logits go to the lower expert.

    Parameters:
        layer: the layer.
        x: activations ``[T, H]`` of any float type.

    Raises:
        InputError: ``x`` has another shape.
    """
    spec = layer.spec
    if x.dim() != 2 or x.shape[1] != spec.hidden:
        raise InputError(f"tokens: expected shape [tokens, {spec.hidden}], got {list(x.shape)}")
    x = x.detach().double()
    probabilities = (x @ layer.router_weight().double().T).softmax(dim=-1)
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    weights, experts = ranked[:, : spec.router.top_k], order[:, : spec.router.top_k]
    if spec.router.normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)

    output = torch.zeros_like(x)
    for index in experts.unique().tolist():
        tokens, choice = torch.nonzero(experts == index, as_tuple=True)
        output[tokens] += weights[tokens, choice, None] * _expert(layer.expert(index), x[tokens])
    shared = layer.shared()
    if shared is not None:
        gate = layer.shared_gate_weight()
        weight = 1.0 if gate is None else torch.sigmoid(x @ gate.double().T)
        output += weight * _expert(shared, x)
    return Result(output.float(), experts, weights.float())


def _expert(weights: ExpertWeights, x: torch.Tensor) -> torch.Tensor:
    gate, up, down = (matrix.double() for matrix in weights)
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T
