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
from moe_hw.routes import GivenRoutes
from moe_hw.twins.array import Operand, accumulate, expert_operand, router_operand
from moe_hw.twins.combine import add, contribution, to_float32, weight_to_float32
from moe_hw.twins.post import Form, activate, requantise
from moe_hw.twins.router import Routes, Rules, given_routes, route

Job = tuple[QuantisedExpert, Form, np.ndarray, np.ndarray, np.ndarray]
"""An expert and its form, its tokens, and their weights' mantissas and exponents."""


def golden(
    layer: MoELayer | CodedLayer,
    x: torch.Tensor | np.ndarray,
    weight_format: str = "int4",
    routes: GivenRoutes | None = None,
) -> Result:
    """What the accelerator computes, to the last bit.

    Parameters:
        layer: a layer; a ``CodedLayer`` has its format already, and keeps what it has quantised for later calls.
        x: activations ``[T, H]`` of any float type.
        weight_format: of a float layer, as of ``moe_hw.formats.LayerFormat``.
        routes: of the tokens, if the layer's spec says that they are given, and only then.

    Raises:
        InputError: routes that cannot be; ``x`` has another shape, or values that cannot be represented.
        ModelError: weights that are not finite.
    """
    quantised = layer if isinstance(layer, CodedLayer) else QuantisedLayer(layer, weight_format)
    hidden = quantised.spec.hidden
    if len(x.shape) != 2 or x.shape[1] != hidden:
        raise InputError(f"tokens: expected shape [tokens, {hidden}], got {list(x.shape)}")
    spec = quantised.spec
    tokens = quantise_tokens(x, spec.constant)
    taken = route_tokens(quantised, tokens) if routes is None else given_routes(spec, len(tokens), routes)
    return Result(
        output=torch.from_numpy(outputs(quantised, tokens, taken)[:, :hidden].copy()),
        experts=torch.from_numpy(taken.experts),
        weights=torch.from_numpy(weight_to_float32(taken.mantissas, taken.exponents)),
    )


def outputs(quantised: CodedLayer, tokens: Tokens, routes: Routes) -> np.ndarray:
    """The outputs of a batch as in memory, float32 ``[T, 32 * blocks(H)]``."""
    spec = quantised.spec
    exponent = spec.expert.degree * tokens.exponent + quantised.combine_exponent
    words = np.zeros((len(tokens), ROWS * spec.hidden_blocks), np.int64)
    for expert, form, members, mantissa, weight_exponent in _jobs(quantised, routes):
        d, a_down = expert_accumulators(expert, form, tokens[members])
        value, lost = contribution(
            d, a_down[:, None], mantissa[:, None], weight_exponent[:, None], exponent[members, None]
        )
        words[members], overflow = add(words[members], value)
        if lost.any() or overflow.any():
            raise ModelError("a result saturated: expected combine_exponent to bound every sum; report this as a bug")
    return to_float32(words, exponent[:, None])


def route_tokens(quantised: CodedLayer, tokens: Tokens) -> Routes:
    """The router job of a batch."""
    router = quantised.router
    if router is None:
        raise InputError("routes: expected the tokens' choices and weights, got none; the layer has no router")
    words = quantised.descriptor
    rules = Rules(**{name: words[name] for name in Rules._fields if name in words})
    table = 0 if quantised.correction is None else quantised.correction.table
    a = tokens.exponent + router.exponents[0] - router.shift
    return route(accumulate(router, router_operand(tokens)), a, rules, table)


def form_of(quantised: CodedLayer, prefix: str = "") -> Form:
    """The words of the descriptor that say how accumulators become hidden activations.

    Parameters:
        prefix: empty for the routed experts, ``shared_`` for the shared one.
    """
    words = quantised.descriptor
    own = {name: words.get(f"{prefix}{name}", words[name]) for name in Form._fields}
    return Form(**own)


def expert_accumulators(expert: QuantisedExpert, form: Form, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """An expert's job: the down accumulators, int64 ``[T, 32 * blocks(H)]``, and their exponents ``[T]``."""
    gate_up, down = expert
    acc = accumulate(gate_up, expert_operand(tokens))
    # Of a two-layer expert every row is a gate, and there is no up.
    gate, up = (slice(0, None, 2), slice(1, None, 2)) if form.gated else (slice(None), slice(None))
    base = tokens.exponent[:, None] + 8 - gate_up.shift
    a_gate, a_up = base + gate_up.exponents[0], base + gate_up.exponents[-1]
    mantissas, block_exponents = requantise(*activate(acc[:, gate], acc[:, up], a_gate, a_up, form))
    hidden = Operand((mantissas,), block_exponents)
    return accumulate(down, hidden), hidden.exponent + down.exponents[0] - down.shift


def _jobs(quantised: CodedLayer, routes: Routes) -> Iterator[Job]:
    """The batch's jobs, the shared expert's first as in the scheduler."""
    if quantised.shared is not None and routes.shared is not None:
        yield quantised.shared, form_of(quantised, "shared_"), np.arange(len(routes.experts)), *routes.shared
    form = form_of(quantised)
    for index in np.unique(routes.experts[routes.experts >= 0]):
        members, choice = np.nonzero(routes.experts == index)
        weights = routes.mantissas[members, choice], routes.exponents[members, choice]
        yield quantised.expert(int(index)), form, members, *weights
