"""The MoE families of transformers 5.x that a layer can be read from.

They are told apart by the class of their block. Sizes and settings come from the block itself, so a configuration is
read by building its model without weights, and nothing is known of a family's configuration here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moe_hw.errors import ModelError, UnsupportedLayer
from moe_hw.layer import ExpertWeights, MoELayer
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec

GATE_UP, DOWN = "experts.gate_up_proj", "experts.down_proj"
_SILU = ("SiLU", "SiLUActivation")


def _always(router: Any) -> bool:
    return True


def _never(router: Any) -> bool:
    return False


def _as_configured(router: Any) -> bool:
    return bool(router.norm_topk_prob)


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
        normalise: whether the weights of a token's experts sum to one, from the router's module.
        router: name of the router's weight, in the module that knows ``top_k``.
        shared: name of the shared expert's module; a block may have none.
        shared_gate: name of the weight of the shared expert's gate, or empty.
        scales: factors of the routed and of the shared experts' outputs, from the block.
        check: raises ``UnsupportedLayer`` for settings of a block that this version cannot represent.
    """

    block: str
    normalise: Callable[[Any], bool]
    router: str = "gate.weight"
    shared: str = ""
    shared_gate: str = ""
    scales: Callable[[Any], tuple[float, float]] = lambda block: (1.0, 1.0)
    check: Callable[[Any], None] = lambda block: None

    def parameters(self, block: torch.nn.Module) -> frozenset[str]:
        """Names of all the block's parameters; a block with others has a feature that is not supported."""
        names = {self.router, GATE_UP, DOWN, *([self.shared_gate] if self.shared_gate else ())}
        return frozenset(names | set(self.shared_parameters(block)))

    def shared_parameters(self, block: torch.nn.Module) -> tuple[str, ...]:
        """Names of the shared expert's gate, up and down matrices; empty if the block has none."""
        if not self.shared or not hasattr(block, self.shared):
            return ()
        return tuple(f"{self.shared}.{name}_proj.weight" for name in ExpertWeights._fields)


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
    Family("JambaSparseMoeBlock", _never, router="router.weight"),
    *(
        Family(block, _never, shared="shared_experts", scales=_scaled, check=_without_groups)
        for block in ("DeepseekV2Moe", "DeepseekOcr2TextMoe", "UnlimitedOcrTextMoe")
    ),
    Family("HunYuanMoEV1Moe", _always, router="gate.wg.weight", shared="shared_mlp"),
    *(
        # Their shared expert is a module of the decoder layer and stays on the host.
        Family(block, _always, router="router.weight")
        for block in ("GraniteMoeMoE", "GraniteMoeSWAMoE", "GraniteMoeSharedMoE", "GraniteMoeHybridMoE")
    ),
    Family("AriaTextMoELayer", _always, router="router.weight", shared="shared_experts"),
    Family("Cohere2MoeSparseMoeBlock", _always, shared="shared_experts", scales=_combined, check=_with_softmax),
)

_BY_BLOCK = {family.block: family for family in FAMILIES}


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
        if self.name not in _BY_BLOCK:
            raise _unknown(self.name)
        self.block = block
        self.family = _BY_BLOCK[self.name]
        self.weights = dict(block.named_parameters())
        self._check_parameters()
        self.family.check(block)
        self.shared = self.family.shared_parameters(block)
        self.transposed = bool(getattr(block.experts, "is_transposed", False))
        self.spec = self._spec()

    def _check_parameters(self) -> None:
        expected = self.family.parameters(self.block)
        if missing := sorted(expected - set(self.weights)):
            raise UnsupportedLayer(f"{self.name}: expected the parameter {missing[0]} of transformers 5.x, got none")
        if extra := sorted(set(self.weights) - expected):
            what = f"expected no parameter {extra[0]}: biases and adapters are not supported"
            raise UnsupportedLayer(f"{self.name}: {what}")
        for key, weight in self.weights.items():
            if not weight.dtype.is_floating_point:
                raise UnsupportedLayer(f"{self.name}.{key}: expected a floating point weight, got {weight.dtype}")

    def _spec(self) -> LayerSpec:
        router = self.weights[self.family.router]
        gate_up, down = self.weights[GATE_UP], self.weights[DOWN]
        form = "[E, H, 2I], [E, I, H]" if self.transposed else "[E, 2I, H], [E, H, I]"
        if gate_up.dim() != 3 or down.dim() != 3 or router.dim() != 2:
            shapes = ", ".join(str(list(weight.shape)) for weight in (gate_up, down, router))
            raise ModelError(f"{self.name}: expected weights {form} and [E, H], got {shapes}")
        experts, hidden = router.shape
        inter = down.shape[1 if self.transposed else 2]
        for key, weight, (rows, columns) in (
            (GATE_UP, gate_up, (2 * inter, hidden)),
            (DOWN, down, (hidden, inter)),
        ):
            shape = [experts, *((columns, rows) if self.transposed else (rows, columns))]
            if list(weight.shape) != shape:
                raise ModelError(f"{self.name}.{key}: expected shape {shape}, got {list(weight.shape)}")

        activation = _activation(self.block.experts)
        shared = None
        if self.shared:
            shared = SharedSpec(self.weights[self.shared[2]].shape[1], gated=bool(self.family.shared_gate))
            _expect("shared.activation", _activation(getattr(self.block, self.family.shared)), activation)
        module: Any = self.block.get_submodule(self.family.router.split(".")[0])
        choice = RouterSpec(experts, int(module.top_k), normalise=self.family.normalise(module))
        return LayerSpec(hidden, choice, ExpertSpec(inter, activation=activation), shared)

    def layer(self) -> MoELayer:
        for key, weight in self.weights.items():
            if weight.device.type == "meta":
                raise ModelError(f"{self.name}.{key}: expected a loaded weight, got one on the meta device")
        inter = self.spec.expert.intermediate
        gate_up, down = self.weights[GATE_UP], self.weights[DOWN]
        routed_scale, shared_scale = self.family.scales(self.block)

        def scaled(down: torch.Tensor, scale: float) -> torch.Tensor:
            return down if scale == 1 else down.float() * scale

        def expert(index: int) -> ExpertWeights:
            both, last = gate_up[index], down[index]
            if self.transposed:
                both, last = both.T, last.T
            return ExpertWeights(both[:inter], both[inter:], scaled(last, routed_scale))

        def shared() -> ExpertWeights:
            gate, up, down = (self.weights[key] for key in self.shared)
            return ExpertWeights(gate, up, scaled(down, shared_scale))

        return MoELayer(
            self.spec,
            router=self.weights[self.family.router],
            expert=expert,
            shared=shared if self.shared else None,
            shared_gate=self.weights.get(self.family.shared_gate),
        )


def moe_blocks(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module, str, torch.nn.Module]]:
    """The MoE blocks of a model: (qualified name, parent module, attribute of the parent, block), in model order.

    Raises:
        UnsupportedLayer: the model has experts, but none of its blocks is of a supported class.
        ModelError: the model has no experts.
    """
    modules = dict(model.named_modules())
    found = []
    for name, module in modules.items():
        if type(module).__name__ in _BY_BLOCK and name:
            parent, _, attribute = name.rpartition(".")
            found.append((name, modules[parent], attribute, module))
    if found:
        return found
    for module in modules.values():
        if hasattr(module, "experts"):
            raise _unknown(type(module).__name__)
    raise ModelError(f"{type(model).__name__} is not a MoE model: none of its modules has experts")


def layer_specs(config: Any) -> list[LayerSpec]:
    """The specs of the MoE layers that a transformers configuration describes, in model order.

    Raises:
        UnsupportedLayer: a MoE model of a family, or with a feature, that is not supported.
        ModelError: the configuration has no MoE layer, or transformers can build no model from it.
    """
    return [read_spec(block) for *_, block in moe_blocks(_empty_model(config))]


def _empty_model(config: Any) -> torch.nn.Module:
    """The configuration's model with weights that have shapes but no values."""
    import transformers

    problem: Exception | None = None
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        try:
            with torch.device("meta"):
                return auto.from_config(config)
        except Exception as error:  # whatever a model's constructor makes of a configuration's values
            problem = problem or error
    reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    raise ModelError(
        f"{config.model_type}: expected a configuration that transformers can build, got: {reason}; mend config.json"
    )


def _unknown(block: str) -> UnsupportedLayer:
    return UnsupportedLayer(f"block class: expected one of those in moe_hw/families.py, got {block}")


def _expect(axis: str, value: object, supported: object) -> None:
    if value != supported:
        raise UnsupportedLayer(f"{axis}: expected {supported}, got {value}; this version cannot run the layer")


def _activation(module: Any) -> str:
    """Name of the module's activation function as the spec knows it."""
    name = type(module.act_fn).__name__
    return "silu" if name in _SILU else name
