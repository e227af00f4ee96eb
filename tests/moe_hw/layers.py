"""Small layers that the tests share."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from moe_hw.routes import GivenRoutes
from moe_hw.spec import CORRECTIONS, GATED, SCORES, ExpertSpec, GroupSpec, LayerSpec, RouterSpec, SharedSpec

SPECS = {
    "ones": LayerSpec(1, RouterSpec(1, 1), ExpertSpec(1)),
    "twos": LayerSpec(2, RouterSpec(2, 1, normalise=False), ExpertSpec(2), SharedSpec(1, gated=False)),
    "odd": LayerSpec(33, RouterSpec(5, 2), ExpertSpec(45), SharedSpec(7, gated=True)),
    "all experts": LayerSpec(31, RouterSpec(7, 7, normalise=False), ExpertSpec(65)),
    "relu": LayerSpec(40, RouterSpec(4, 2), ExpertSpec(33, "relu", gated=False), SharedSpec(64, gated=False)),
    "squares": LayerSpec(33, RouterSpec(3, 1), ExpertSpec(31, "relu2", gated=False, limit=1.5)),
    "two biased layers": LayerSpec(32, RouterSpec(4, 2, bias=True), ExpertSpec(70, "gelu", gated=False, bias=True)),
    "gpt-oss": LayerSpec(
        45, RouterSpec(5, 2, bias=True), ExpertSpec(33, "quick_gelu", bias=True, limit=1.0, up_offset=0.5)
    ),
    "limits": LayerSpec(
        64, RouterSpec(5, 3), ExpertSpec(45, limit=0.5, clamp="after"), SharedSpec(31, gated=True, limit=2.0)
    ),
    "gelu_tanh": LayerSpec(31, RouterSpec(2, 2), ExpertSpec(32, "gelu_tanh", up_offset=1.0), SharedSpec(5, gated=True)),
    "softcaps": LayerSpec(
        40,
        RouterSpec(5, 2, "sigmoid", correction="score"),
        ExpertSpec(33, gate_softcap=0.5, up_softcap=2.5),
        SharedSpec(7, gated=False),
    ),
    "sigmoids": LayerSpec(33, RouterSpec(5, 2, "sigmoid", normalise=False), ExpertSpec(31), SharedSpec(7, gated=True)),
    "shares of sigmoids": LayerSpec(40, RouterSpec(6, 3, "sigmoid", epsilon=1e-3, bias=True), ExpertSpec(24)),
    "corrected softmax": LayerSpec(40, RouterSpec(9, 3, correction="score", scale=1.5), ExpertSpec(24)),
    "two of a group of a softmax": LayerSpec(
        33, RouterSpec(8, 3, normalise=False, groups=GroupSpec(4, 2, "two")), ExpertSpec(24), SharedSpec(7, gated=True)
    ),
    "roots": LayerSpec(32, RouterSpec(6, 2, "sqrtsoftplus", correction="score", scale=1.5), ExpertSpec(24, limit=1.0)),
    "roots of all": LayerSpec(31, RouterSpec(5, 5, "sqrtsoftplus", normalise=False), ExpertSpec(33)),
    "corrected logits": LayerSpec(32, RouterSpec(7, 2, "sigmoid", correction="logit"), ExpertSpec(24)),
    "deepseek-v3": LayerSpec(
        33,
        RouterSpec(12, 4, "sigmoid", correction="score", groups=GroupSpec(4, 2), scale=2.5),
        ExpertSpec(45),
        SharedSpec(7, gated=False),
    ),
    "filled groups": LayerSpec(
        31, RouterSpec(6, 3, "sigmoid", correction="score", groups=GroupSpec(3, 1, zero=True)), ExpertSpec(24)
    ),
    "largest of a group": LayerSpec(32, RouterSpec(6, 2, groups=GroupSpec(2, 1, "largest")), ExpertSpec(24)),
    "blocks": LayerSpec(128, RouterSpec(16, 4, normalise=False), ExpertSpec(96), SharedSpec(160, gated=True)),
}
"""Sizes 1, 2, odd, around a block and whole blocks; every combination of the shared expert and of normalising; forms of
experts: activations, two layers, biases, limits, softcaps; routers with every score, corrections and groups."""


@st.composite
def group_specs(draw: st.DrawFn, experts: int, correction: str | None, most_kept: int) -> GroupSpec:
    """Groups of so many experts."""
    count = draw(st.sampled_from([count for count in range(1, min(experts, 32) + 1) if experts % count == 0]))
    two = count < experts and draw(st.booleans())
    zero = correction != "logit" and draw(st.booleans())
    return GroupSpec(count, draw(st.integers(1, min(count, most_kept))), "two" if two else "largest", zero)


@st.composite
def layer_specs(draw: st.DrawFn, sizes: st.SearchStrategy[int], most_experts: int, most_top_k: int) -> LayerSpec:
    """Layers of every form."""
    experts = draw(st.integers(1, most_experts))
    score = draw(st.sampled_from(SCORES))
    given = score == "given"
    correction = draw(st.sampled_from({"given": [None], "softmax": [None, "score"]}.get(score, CORRECTIONS)))
    groups = None if given else draw(st.none() | group_specs(experts, correction, most_top_k))
    choices = experts if groups is None or groups.zero else groups.kept * experts // groups.count
    router = RouterSpec(
        experts,
        draw(st.integers(1, min(choices, most_top_k))),
        score,
        normalise=draw(st.booleans()),
        bias=draw(st.booleans()) and not given,
        correction=correction,
        groups=groups,
        epsilon=0.0 if given else draw(st.sampled_from([0.0, 1e-6, 0.5])),
        scale=1.0 if given else draw(st.sampled_from([1.0, 2.0**-10, 0.3, 2.446, 2.0**10])),
    )
    gated = draw(st.booleans())
    limits = st.none() | st.sampled_from([0.3, 1.0, 7.0])
    limit = draw(limits)
    offset = draw(st.sampled_from([0.0, 1.0])) if gated and (limit is None or limit > 1) else 0.0
    bias = draw(st.booleans())
    plain = not gated or bias or limit is not None or offset != 0
    caps = st.none() if plain else st.none() | st.sampled_from([0.5, 4.0, 25.0])
    expert = ExpertSpec(
        draw(sizes),
        draw(st.sampled_from(GATED if gated else (*GATED, "relu2"))),
        gated,
        bias=bias,
        limit=limit,
        clamp=draw(st.sampled_from(["before", "after"])),
        up_offset=offset,
        gate_softcap=draw(caps),
        up_softcap=draw(caps),
    )
    gates = st.just(False) if given else st.booleans()
    values = [None] if expert.softcapped else [None, 7.0] if offset else [None, 0.3, 1.0, 7.0]
    shared = draw(st.none() | st.builds(SharedSpec, sizes, gated=gates, limit=st.sampled_from(values)))
    return LayerSpec(draw(sizes), router, expert, shared)


def routes_of(spec: LayerSpec, tokens: int, seed: int = 0) -> GivenRoutes | None:
    """Random routes, of which some choose nothing, if the layer's are given."""
    if not spec.router.given:
        return None
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(tokens, spec.router.experts, generator=generator).argsort(1)
    experts = order[:, : spec.router.top_k]
    experts = torch.where(torch.rand(experts.shape, generator=generator) < 0.2, -1, experts)
    shared = torch.rand(tokens, generator=generator) if spec.shared else None
    return GivenRoutes(experts, torch.randn(experts.shape, generator=generator), shared)
