"""The MoE families of transformers 5.x whose whole blocks the accelerator runs, router included.

They are told apart by the class of their block. Sizes and settings come from the block itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moe_hw.errors import ModelError, UnsupportedLayer
from moe_hw.experts import activation_of, check_floats, read_experts
from moe_hw.layer import ExpertWeights, MoELayer
from moe_hw.spec import LayerSpec, RouterSpec, SharedSpec


def _always(router: Any) -> bool:
    return True


def _never(router: Any) -> bool:
    return False


def _as_configured(router: Any) -> bool:
    return bool(router.norm_topk_prob)


def _by_sum(block: Any) -> bool:
    return block.moe_normalize_expert_weights is not None


def _with_l1_norm(block: Any) -> None:
    if block.moe_normalize_expert_weights is not None:
        _expect("router.norm", block.moe_normalize_expert_weights, 1)


def _scaled(block: Any) -> tuple[float, float]:
    return float(block.gate.routed_scaling_factor), 1.0


def _combined(block: Any) -> tuple[float, float]:
    average = block.num_shared_experts > 0 and block.shared_expert_combination_strategy == "average"
    return (0.5, 0.5) if average else (1.0, 1.0)


def _without_groups(block: Any) -> None:
    _expect("router.groups", block.gate.topk_method, "greedy")


def _with_softmax(block: Any) -> None:
    _expect("router.score", block.gate.expert_selection_fn, "softmax")


@dataclass(frozen=True)
class Family:
    """How one block class stores its layer and combines its experts.

    Attributes:
        block: name of the block's class.
        normalise: whether the weights of a token's experts sum to one, from the module that knows ``top_k``.
        router: name of the router's weight; its bias, if it has one, is beside it.
        top_k: name of the module that knows ``top_k``; the block itself if empty.
        experts: name of the module with the experts; the block itself if empty.
        shared: name of the shared expert's module; a block may have none.
        shared_gate: name of the weight of the shared expert's gate, or empty.
        output_bias: name of a vector that is added to the outputs, on the host.
        returns_scores: the block returns its outputs and the weights of the experts.
        scales: factors of the routed and of the shared experts' outputs, from the block.
        check: raises ``UnsupportedLayer`` for settings of a router that this version cannot represent.
    """

    block: str
    normalise: Callable[[Any], bool]
    router: str = "gate.weight"
    top_k: str = "gate"
    experts: str = "experts"
    shared: str = ""
    shared_gate: str = ""
    output_bias: str = ""
    returns_scores: bool = False
    scales: Callable[[Any], tuple[float, float]] = lambda block: (1.0, 1.0)
    check: Callable[[Any], None] = lambda block: None

    @property
    def router_bias(self) -> str:
        return self.router.removesuffix("weight") + "bias"

    def shared_parameters(self, block: torch.nn.Module) -> tuple[str, ...]:
        """Names of the shared expert's gate, up and down matrices; empty if the block has none."""
        if not self.shared or not hasattr(block, self.shared):
            return ()
        return tuple(f"{self.shared}.{name}_proj.weight" for name in ("gate", "up", "down"))


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
        Family(block, _never, shared="shared_experts", scales=_scaled, check=_without_groups)
        for block in ("DeepseekV2Moe", "DeepseekOcr2TextMoe", "UnlimitedOcrTextMoe")
    ),
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
    Family("Cohere2MoeSparseMoeBlock", _always, shared="shared_experts", scales=_combined, check=_with_softmax),
)

BY_BLOCK = {family.block: family for family in FAMILIES}
"""The families by the names of their blocks."""


def read_spec(block: torch.nn.Module) -> LayerSpec:
    """The spec of a transformers MoE block, whose weights need not be loaded.

    Raises:
        UnsupportedLayer: the block is of another class, or has a feature that this version cannot represent.
        ModelError: weights of shapes that contradict each other.
    """
    return _Reader(block).spec


def read_block(block: torch.nn.Module) -> MoELayer:
    """The layer of a transformers MoE block; shares the block's memory.

    A factor of the routed experts' outputs, or of the shared expert's, becomes part of their ``down`` matrices.

    Raises:
        UnsupportedLayer, ModelError: as :func:`read_spec`.
        ModelError: weights that are not loaded.
    """
    return _Reader(block).layer()


class _Reader:
    """What a block of a known family says about its layer."""

    def __init__(self, block: Any):
        self.name = type(block).__name__
        if self.name not in BY_BLOCK:
            raise UnsupportedLayer(f"block class: expected one of those in moe_hw/families.py, got {self.name}")
        self.block = block
        self.family = family = BY_BLOCK[self.name]
        self.weights = dict(block.named_parameters())
        self.experts = read_experts(block.get_submodule(family.experts))
        self.shared = family.shared_parameters(block)
        self._check_parameters()
        family.check(block)
        self.spec = self._spec()

    def _check_parameters(self) -> None:
        """A block with others than the family's has a feature that is not supported."""
        family = self.family
        expected = {family.router, *self.shared, *filter(None, (family.shared_gate, family.output_bias))}
        if missing := sorted(expected - set(self.weights)):
            raise UnsupportedLayer(f"{self.name}: expected the parameter {missing[0]} of transformers 5.x, got none")
        own = {name for name in self.weights if not self._is_of_experts(name)}
        if extra := sorted(own - expected - {family.router_bias}):
            what = f"expected no parameter {extra[0]}: other biases and adapters are not supported"
            raise UnsupportedLayer(f"{self.name}: {what}")
        check_floats(self.name, self.weights)

    def _is_of_experts(self, name: str) -> bool:
        if self.family.experts:
            return name.startswith(f"{self.family.experts}.")
        return name.split(".")[0].endswith("_linear")

    def _spec(self) -> LayerSpec:
        family, experts, router = self.family, self.experts, self.weights[self.family.router]
        shape = [experts.count, experts.hidden]
        if list(router.shape) != shape:
            raise ModelError(f"{self.name}.{family.router}: expected shape {shape}, got {list(router.shape)}")
        shared = None
        if self.shared:
            module: Any = getattr(self.block, family.shared)
            shared = SharedSpec(self.weights[self.shared[2]].shape[1], gated=bool(family.shared_gate))
            form = activation_of(module.act_fn)
            if form != experts.spec.activation:
                expected = experts.spec.activation
                raise UnsupportedLayer(f"shared.activation: expected {expected} as of the routed experts, got {form}")
        knows: Any = self.block.get_submodule(family.top_k)
        bias = family.router_bias in self.weights
        choice = RouterSpec(experts.count, int(knows.top_k), normalise=family.normalise(knows), bias=bias)
        return LayerSpec(experts.hidden, choice, experts.spec, shared)

    def layer(self) -> MoELayer:
        check_loaded(self.block)
        routed_scale, shared_scale = self.family.scales(self.block)

        def scaled(weights: ExpertWeights, scale: float) -> ExpertWeights:
            if scale == 1:
                return weights
            bias = None if weights.down_bias is None else weights.down_bias.float() * scale
            return weights._replace(down=weights.down.float() * scale, down_bias=bias)

        return MoELayer(
            self.spec,
            router=self.weights[self.family.router],
            router_bias=self.weights.get(self.family.router_bias),
            expert=lambda index: scaled(self.experts.read(index), routed_scale),
            shared=(lambda: scaled(ExpertWeights(*(self.weights[key] for key in self.shared)), shared_scale))
            if self.shared
            else None,
            shared_gate=self.weights.get(self.family.shared_gate),
        )


def check_loaded(module: torch.nn.Module) -> None:
    """All weights of a module have values.

    Raises:
        ModelError: names the first that has not.
    """
    for key, weight in module.named_parameters():
        if weight.device.type == "meta":
            name = type(module).__name__
            raise ModelError(f"{name}.{key}: expected a loaded weight, got one on the meta device")


def _expect(axis: str, value: object, supported: object) -> None:
    if value != supported:
        raise UnsupportedLayer(f"{axis}: expected {supported}, got {value}; this version cannot run the layer")
