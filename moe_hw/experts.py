"""Experts as the modules of transformers 5.x keep them: their form, and their matrices one at a time.

What a module computes is not inferred from names but evaluated, see :mod:`moe_hw.forms`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moe_hw.errors import ModelError, UnsupportedLayer
from moe_hw.forms import activation_of, form_of
from moe_hw.layer import ExpertWeights
from moe_hw.spec import ExpertSpec


@dataclass(frozen=True)
class Experts:
    """The routed experts of a layer.

    Attributes:
        module: the module that holds them.
        count: how many there are.
        hidden: elements of a token.
        spec: the form of each.
        read: the matrices of one, views of the module's.
    """

    module: torch.nn.Module
    count: int
    hidden: int
    spec: ExpertSpec
    read: Callable[[int], ExpertWeights]


def read_experts(module: torch.nn.Module) -> Experts:
    """The experts of a module of transformers, whose weights need not be loaded.

    Raises:
        UnsupportedLayer: the module is of another kind, or has a feature that this version cannot represent.
        ModelError: weights of shapes that contradict each other.
    """
    name = type(module).__name__
    readers: dict[str, Callable[[Any], Experts]] = {
        "DbrxExperts": _flat,
        "SwitchTransformersExperts": _separate,
        "JetMoeMoE": _parallel,
        "Llama4TextExperts": _stacked,
        "LongcatFlashExperts": _stacked,
        "Step3p7Experts": _stacked,
    }
    if name not in readers and not hasattr(module, "is_concatenated"):
        raise UnsupportedLayer(f"experts: expected a class of transformers' experts interface, got {name}")
    return readers.get(name, _stacked)(module)


def _stacked(module: Any) -> Experts:
    """Three dimensions, gate and up in one or no gate, perhaps transposed or interleaved, perhaps with biases."""
    name = type(module).__name__
    if getattr(module, "has_post_expert_norm", False):
        raise UnsupportedLayer(f"expert.post_norm: expected none, got one in {name}; this version cannot run the layer")
    gated = getattr(module, "has_gate", True)
    bias = getattr(module, "has_bias", False)
    concatenated = getattr(module, "is_concatenated", True)
    transposed = getattr(module, "is_transposed", name == "Llama4TextExperts")
    first_name = "gate_up_proj" if gated else "up_proj"
    names = [first_name, "down_proj", *([f"{first_name}_bias", "down_proj_bias"] if bias else [])]
    weights = dict(module.named_parameters(recurse=False))
    if set(weights) != set(names):
        odd = sorted(set(weights) ^ set(names))[0]
        raise UnsupportedLayer(
            f"{name}: expected the parameters {', '.join(names)}; {odd} is a feature that this version cannot represent"
        )
    check_floats(name, weights)
    first, down = weights[first_name], weights["down_proj"]
    if first.dim() != 3 or down.dim() != 3:
        raise ModelError(f"{name}: expected weights of three dimensions, got {list(first.shape)}, {list(down.shape)}")
    if transposed:
        first, down = first.transpose(1, 2), down.transpose(1, 2)
    count, hidden, inter = down.shape
    # LongCat has rows for its experts without weights.
    shape = [first.shape[0] if name == "LongcatFlashExperts" else count, inter * (1 + gated), hidden]
    if list(first.shape) != shape:
        found = f"{list(first.shape)} with {list(down.shape)} of down_proj"
        raise ModelError(f"{name}.{first_name}: expected shape {shape}, got {found}")

    def halves(rows: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Gate and up."""
        if not gated:
            return None, rows
        if concatenated:
            return rows[:inter], rows[inter:]
        return rows[0::2], rows[1::2]

    def read(index: int) -> ExpertWeights:
        if not bias:
            return ExpertWeights(*halves(first[index]), down[index])
        biases = weights[f"{first_name}_bias"][index], weights["down_proj_bias"][index]
        return ExpertWeights(*halves(first[index]), down[index], *halves(biases[0]), biases[1])

    apply = getattr(module, "_apply_gate", None)
    if not gated or apply is None:
        spec = ExpertSpec(inter, activation_of(module.act_fn), gated, bias)
    else:

        def evaluate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
            return apply(torch.cat((gate, up), -1) if concatenated else torch.stack((gate, up), -1).flatten(-2))

        form = form_of(evaluate, f"{name}._apply_gate", module)
        spec = dataclasses.replace(form, intermediate=inter, bias=bias)
    return Experts(module, count, hidden, spec, read)


def _flat(module: Any) -> Experts:
    """DBRX: the rows of all experts in one matrix, down transposed."""
    mlp = module.mlp
    count = module.num_experts
    check_floats(type(module).__name__, dict(mlp.named_parameters()))
    gate, up, down = (part.view(count, -1, part.shape[1]) for part in (mlp.w1, mlp.v1, mlp.w2))
    spec = ExpertSpec(gate.shape[1], activation_of(mlp.activation_fn))
    return Experts(module, count, gate.shape[2], spec, lambda i: ExpertWeights(gate[i], up[i], down[i].T))


def _separate(module: Any) -> Experts:
    """Switch: a module of two layers for each expert."""
    experts = list(module.values())
    check_floats(type(module).__name__, dict(module.named_parameters()))
    inter, hidden = experts[0].wi.weight.shape
    spec = ExpertSpec(inter, activation_of(experts[0].act), gated=False)
    return Experts(
        module, len(experts), hidden, spec, lambda i: ExpertWeights(None, experts[i].wi.weight, experts[i].wo.weight)
    )


def _parallel(block: Any) -> Experts:
    """JetMoE: the block itself has the matrices."""
    first, down = block.input_linear.weight, block.output_linear.weight
    check_floats(type(block).__name__, {"input_linear": first, "output_linear": down})
    count, hidden, inter = down.shape
    spec = ExpertSpec(inter, activation_of(block.activation))
    return Experts(
        block, count, hidden, spec, lambda i: ExpertWeights(first[i, :inter], first[i, inter:], down[i])
    )


def check_floats(name: str, weights: dict[str, torch.Tensor]) -> None:
    """Weights that another library has quantised in place are not read.

    Raises:
        UnsupportedLayer: names the first weight that is not floating point.
    """
    for key, weight in weights.items():
        if not weight.dtype.is_floating_point:
            raise UnsupportedLayer(f"{name}.{key}: expected a floating point weight, got {weight.dtype}")
