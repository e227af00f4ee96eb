"""The whole layer in integers: the golden model, twin of ``rtl_gen/accelerator.py``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from moe_hw.arch import ROWS
from moe_hw.errors import InputError, ModelError
from moe_hw.formats import Tokens, quantise_tokens
from moe_hw.layer import MoELayer
from moe_hw.quantised import CodedLayer, QuantisedExpert, QuantisedLayer
from moe_hw.result import Result
from moe_hw.twins.array import Operand, accumulate, expert_operand, router_operand
from moe_hw.twins.combine import add, contribution, to_float32, weight_to_float32
from moe_hw.twins.post import requantise, swiglu
from moe_hw.twins.router import Routes, route

Job = tuple[QuantisedExpert, np.ndarray, np.ndarray, np.ndarray]
"""An expert, its tokens, and their weights' mantissas and exponents."""


def golden(layer: MoELayer | CodedLayer, x: torch.Tensor | np.ndarray, weight_format: str = "int4") -> Result:
    """What the accelerator computes, to the last bit.

    Parameters:
        layer: a layer; a ``CodedLayer`` has its format already, and keeps what it has quantised for later calls.
        x: activations ``[T, H]`` of any float type.
        weight_format: of a float layer, ``int4`` or ``int8``.

    Raises:
        InputError: ``x`` has another shape, or values that cannot be represented.
        ModelError: weights that are not finite.
    """
    quantised = layer if isinstance(layer, CodedLayer) else QuantisedLayer(layer, weight_format)
    hidden = quantised.spec.hidden
    if len(x.shape) != 2 or x.shape[1] != hidden:
        raise InputError(f"tokens: expected shape [tokens, {hidden}], got {list(x.shape)}")
    tokens = quantise_tokens(x)
    routes = route_tokens(quantised, tokens)
    exponent = 2 * tokens.exponent + quantised.combine_exponent
    words = np.zeros((len(tokens), ROWS * quantised.spec.hidden_blocks), np.int64)
    for expert, members, mantissa, weight_exponent in _jobs(quantised, routes):
        d, a_down = expert_accumulators(expert, tokens[members])
        value, lost = contribution(
            d, a_down[:, None], mantissa[:, None], weight_exponent[:, None], exponent[members, None]
        )
        words[members], overflow = add(words[members], value)
        if lost.any() or overflow.any():
            raise ModelError("a result saturated: expected combine_exponent to bound every sum; report this as a bug")
    return Result(
        output=torch.from_numpy(to_float32(words, exponent[:, None])[:, :hidden].copy()),
        experts=torch.from_numpy(routes.experts),
        weights=torch.from_numpy(weight_to_float32(routes.mantissas, routes.exponents)),
    )


def route_tokens(quantised: CodedLayer, tokens: Tokens) -> Routes:
    """The router job of a batch."""
    router, spec = quantised.router, quantised.spec
    shared = None if spec.shared is None else "gate" if spec.shared.gated else "one"
    a = tokens.exponent + router.exponents[0] - router.shift
    acc = accumulate(router, router_operand(tokens))
    return route(acc, a, spec.router.top_k, spec.router.normalise, spec.router.experts, shared)


def expert_accumulators(expert: QuantisedExpert, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """An expert's job: the down accumulators, int64 ``[T, 32 * blocks(H)]``, and their exponents ``[T]``."""
    gate_up, down = expert
    acc = accumulate(gate_up, expert_operand(tokens))
    a_gate, a_up = (tokens.exponent[:, None] + 8 + exponent - gate_up.shift for exponent in gate_up.exponents)
    mantissas, exponents = requantise(*swiglu(acc[:, 0::2], acc[:, 1::2], a_gate, a_up))
    hidden = Operand((mantissas,), exponents)
    return accumulate(down, hidden), hidden.exponent + down.exponents[0] - down.shift


def _jobs(quantised: CodedLayer, routes: Routes) -> Iterator[Job]:
    """The batch's jobs, the shared expert's first as in the scheduler."""
    if quantised.shared is not None and routes.shared is not None:
        yield quantised.shared, np.arange(len(routes.experts)), *routes.shared
    for index in np.unique(routes.experts):
        members, choice = np.nonzero(routes.experts == index)
        weights = routes.mantissas[members, choice], routes.exponents[members, choice]
        yield quantised.expert(int(index)), members, *weights
