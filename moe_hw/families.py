"""The MoE families of transformers 5.x whose whole blocks the accelerator runs, router included.

They are told apart by the class of their block. Sizes and settings come from the block itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from moe_hw.errors import UnsupportedLayer
from moe_hw.spec import GroupSpec

SMALLEST_SUM = 1e-6
"""The sum of a softmax's scores of the choices is not below this unless a correction outweighs all scores."""

Scale = Callable[[Any], float]
"""A factor of outputs, from a block."""


def _always(router: Any) -> bool:
    return True


def _never(router: Any) -> bool:
    return False


def _as_configured(router: Any) -> bool:
    return bool(router.norm_topk_prob)


def _by_sum(block: Any) -> bool:
    return block.moe_normalize_expert_weights is not None


def _softmax(router: Any) -> str:
    return "softmax"


def _sigmoid(router: Any) -> str:
    return "sigmoid"


def _as_computed(router: Any) -> str:
    kind = type(router.score_fn).__name__
    return {"SqrtSoftplusActivation": "sqrtsoftplus", "Sigmoid": "sigmoid"}.get(kind, kind)


def _as_selected(router: Any) -> str:
    return str(router.expert_selection_fn)


def _without_groups(router: Any) -> GroupSpec | None:
    return None


def _groups(router: Any, score: str = "two", zero: bool = False) -> GroupSpec | None:
    if router.num_group in (None, 1):
        return None
    return GroupSpec(router.num_group, router.topk_group, score, zero)


def _groups_of_zeros(router: Any) -> GroupSpec | None:
    return _groups(router, zero=True)


def _groups_by_method(router: Any) -> GroupSpec | None:
    return None if router.topk_method == "greedy" else _groups(router, score="largest")


def _unscaled(block: Any) -> float:
    return 1.0


def _scaled(factor: str) -> Scale:
    read = attrgetter(factor)
    return lambda block: float(read(block))


_by_router = _scaled("gate.routed_scaling_factor")


def _combined(block: Any) -> float:
    average = block.num_shared_experts > 0 and block.shared_expert_combination_strategy == "average"
    return 0.5 if average else 1.0


def _with_l1_norm(block: Any) -> None:
    if block.moe_normalize_expert_weights is not None:
        _expect("router.norm", block.moe_normalize_expert_weights, 1)


def _with_a_small_least_sum(block: Any) -> None:
    if block.gate.norm_min > SMALLEST_SUM:
        raise UnsupportedLayer(
            f"router.norm_min: expected at most {SMALLEST_SUM:g}, which no sum of scores is below, "
            f"got {block.gate.norm_min:g}; this version cannot run the layer"
        )


def _without_hash(block: Any) -> None:
    _expect("router.choice", "a table of token ids" if block.is_hash else "the largest scores", "the largest scores")


def _without_cap(block: Any) -> None:
    _expect("router.softcap", block.gate.router_logit_softcapping, 0)


def _expect(axis: str, value: object, supported: object) -> None:
    if value != supported:
        raise UnsupportedLayer(f"{axis}: expected {supported}, got {value}; this version cannot run the layer")


@dataclass(frozen=True)
class Family:
    """How one block class stores its layer and combines its experts.

    Attributes:
        block: name of the block's class.
        normalise: whether the weights of a token's experts sum to one, from the module that knows ``top_k``.
        router: name of the router's weight; its bias, if it has one, is beside it.
        top_k: name of the module that knows ``top_k``; the block itself if empty.
        score: as of :class:`RouterSpec`, from the same module.
        correction: name of the bias that counts for the choice alone; a block may have none.
        corrects: what it is added to, as of :class:`RouterSpec`.
        groups: the limit of the choice to groups, from the module that knows ``top_k``.
        epsilon: as of :class:`RouterSpec`.
        experts: name of the module with the experts; the block itself if empty.
        shared: name of the shared expert's module; a block may have none.
        shared_gate: name of the weight of the shared expert's gate, or empty.
        scale: factor of the routing weights.
        shared_scale: factor of the shared expert's output, which becomes part of its ``down``.
        output_bias: name of a vector that is added to the outputs, on the host.
        after: name of a module that makes the block's output of theirs, on the host.
        returns_scores: the block returns its outputs and the weights of the experts.
        check: raises ``UnsupportedLayer`` for settings of a router that this version cannot represent.
    """

    block: str
    normalise: Callable[[Any], bool]
    router: str = "gate.weight"
    top_k: str = "gate"
    score: Callable[[Any], str] = _softmax
    correction: str = ""
    corrects: str = "score"
    groups: Callable[[Any], GroupSpec | None] = _without_groups
    epsilon: float = 0.0
    experts: str = "experts"
    shared: str = ""
    shared_gate: str = ""
    scale: Scale = _unscaled
    shared_scale: Scale = _unscaled
    output_bias: str = ""
    after: str = ""
    returns_scores: bool = False
    check: Callable[[Any], None] = lambda block: None

    @property
    def router_bias(self) -> str:
        return self.router.removesuffix("weight") + "bias"


def _deepseek(
    block: str, groups: Callable[[Any], GroupSpec | None] = _groups, scale: Scale = _by_router, **more: Any
) -> Family:
    """DeepSeek-V3's router and shared expert, and what else there is."""
    return Family(
        block, _as_configured, score=_sigmoid, correction="gate.e_score_correction_bias", groups=groups,
        **{"shared": "shared_experts", **more}, scale=scale,
    )  # fmt: skip


def _corrected(block: str, correction: str = "gate.e_score_correction_bias", **more: Any) -> Family:
    """Sigmoids divided by their sum, without groups."""
    return Family(block, _always, score=_sigmoid, correction=correction, **more)


FAMILIES = (
    Family("MixtralSparseMoeBlock", _always),
    Family("MiniMaxSparseMoeBlock", _always),
    Family("OlmoeSparseMoeBlock", _as_configured),
    Family("FlexOlmoSparseMoeBlock", _as_configured),
    Family("MellumSparseMoeBlock", _as_configured),
    Family("Qwen3MoeSparseMoeBlock", _as_configured),
    Family("Qwen3VLMoeTextSparseMoeBlock", _always),
    Family("Qwen3OmniMoeThinkerTextSparseMoeBlock", _as_configured),
    *(
        Family(block, normalise, shared="shared_expert", shared_gate="shared_expert_gate.weight")
        for block, normalise in (
            ("Qwen2MoeSparseMoeBlock", _as_configured),
            ("Qwen3NextSparseMoeBlock", _as_configured),
            ("Qwen3_5MoeSparseMoeBlock", _always),
            ("Qwen4ExpTextSparseMoeBlock", _as_configured),
            ("Qwen3OmniMoeTalkerTextSparseMoeBlock", _as_configured),
        )
    ),
    Family("JambaSparseMoeBlock", _never, router="router.weight", top_k=""),
    Family("DbrxFFN", _by_sum, router="router.layer.weight", top_k="", check=_with_l1_norm),
    *(
        Family(block, _never, groups=_groups_by_method, shared="shared_experts", scale=_by_router)
        for block in ("DeepseekV2Moe", "DeepseekOcr2TextMoe", "UnlimitedOcrTextMoe")
    ),
    Family("Mistral4MoE", _as_configured, groups=_groups, shared="shared_experts", scale=_by_router),
    Family("MistralLarge4TextMoE", _always, groups=_groups, shared="shared_experts", scale=_by_router),
    Family("HunYuanMoEV1Moe", _always, router="gate.wg.weight", shared="shared_mlp"),
    *(
        # Their shared expert is a module of the decoder layer and stays on the host.
        Family(block, _always, router="router.weight", top_k="router")
        for block in ("GraniteMoeMoE", "GraniteMoeSWAMoE", "GraniteMoeSharedMoE", "GraniteMoeHybridMoE")
    ),
    *(
        Family(block, _always, router="router.weight", top_k="router", returns_scores=True)
        for block in ("GptOssMLP", "OpenAIPrivacyFilterMLP")
    ),
    Family(
        "JetMoeMoE", _always, router="router.layer.weight", top_k="router", experts="", output_bias="bias"
    ),
    Family("AriaTextMoELayer", _always, router="router.weight", top_k="router", shared="shared_experts"),
    Family(
        "Ernie4_5_MoeSparseMoeBlock",
        _always,
        correction="gate.moe_statics.e_score_correction_bias",
        shared="shared_experts",
        check=_with_a_small_least_sum,
    ),
    Family(
        "DeepseekV4SparseMoeBlock",
        _always,
        score=_as_computed,
        correction="gate.e_score_correction_bias",
        shared="shared_experts",
        scale=_by_router,
        check=_without_hash,
    ),
    Family(
        "Cohere2MoeSparseMoeBlock",
        lambda router: router.expert_selection_fn == "softmax" or router.norm_topk_prob,
        score=_as_selected,
        shared="shared_experts",
        scale=_combined,
        shared_scale=_combined,
    ),
    *(
        _deepseek(block)
        for block in (
            "DeepseekV3MoE", "DeepseekV32MoE", "Glm4MoeMoE", "Glm4MoeLiteMoE", "Glm4vMoeTextMoE", "GlmMoeDsaMoE",
            "Dots1MoE", "Dots3NoteTextMoE", "KimiLinearMoE", "BailingHybridMoE", "SolarOpenMoE",
            "ExaoneMoeSparseMoEBlock", "Glm5NextTextMoE", "HYV4MoE", "NemotronHMoE",
        )
    ),
    _deepseek("AXK2MoE", groups=_groups_of_zeros),
    _deepseek("AXK1MoE", after="post_mlp_layernorm"),
    _deepseek("MiMoV2FlashMoE", shared=""),
    _deepseek("BeamMoE", shared="", scale=_scaled("routed_scaling_factor")),
    _corrected(
        "HYV3MoE", "e_score_correction_bias", shared="shared_experts", scale=_scaled("gate.router_scaling_factor")
    ),
    _corrected("Dots3NoteVisionMoE", "e_score_correction_bias", scale=_scaled("gate.router_scaling_factor")),
    _corrected("MiniMaxM2SparseMoeBlock", "e_score_correction_bias"),
    Family(
        "Inkling2SparseMoeBlock",
        _always,
        score=_as_computed,
        correction="gate.e_score_correction_bias",
        scale=_by_router,
    ),
    *(
        _corrected(block, shared="shared_experts", scale=_scaled("routed_scaling_factor"))
        for block in ("MiniMaxM3VLSparseMoeBlock", "Step3p7SparseMoeBlock")
    ),
    _corrected(
        "LagunaSparseMoeBlock", shared="shared_experts", scale=_scaled("routed_scaling_factor"), check=_without_cap
    ),
    _corrected(
        "AfmoeSparseMoeBlock",
        "expert_bias",
        router="router.gate.weight",
        top_k="router",
        shared="shared_experts",
        scale=_scaled("router.route_scale"),
    ),
    Family(
        "Lfm2MoeSparseMoeBlock",
        _as_configured,
        score=_sigmoid,
        correction="expert_bias",
        epsilon=1e-6,
        scale=_by_router,
    ),
    Family("FlintSparseMoeBlock", _as_configured, score=_sigmoid, shared="shared_expert"),
    Family(
        "Kolibri1SparseMoeBlock",
        _as_configured,
        score=_sigmoid,
        correction="gate.e_score_correction_bias",
        corrects="logit",
        shared="shared_experts",
    ),
)

BY_BLOCK = {family.block: family for family in FAMILIES}
"""The families by the names of their blocks."""
