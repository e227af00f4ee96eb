"""The MoE families of transformers 5.x that a layer can be read from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moe_hw.errors import ModelError, UnsupportedLayer
from moe_hw.layer import ExpertWeights, MoELayer
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec

_ROUTED = frozenset({"gate.weight", "experts.gate_up_proj", "experts.down_proj"})
_SHARED = tuple(f"shared_expert.{name}_proj.weight" for name in ExpertWeights._fields)
_SHARED_GATE = "shared_expert_gate.weight"
_SILU = ("SiLU", "SiLUActivation")


@dataclass(frozen=True)
class Family:
    """How one block class stores its layer.

    Attributes:
        block: name of the block's class.
        model_type: ``model_type`` of the configurations that make such blocks.
        parameters: names of all the block's parameters; a block with others has a feature that is not supported.
        normalise: whether the block's router divides by the sum of the chosen weights.
        spec: the spec of a MoE layer, from a configuration.
    """

    block: str
    model_type: str
    parameters: frozenset[str]
    normalise: Callable[[Any], bool]
    spec: Callable[[Any], LayerSpec]


def _config_spec(config: Any, inter: int, normalise: bool, shared: SharedSpec | None = None) -> LayerSpec:
    return LayerSpec(
        hidden=config.hidden_size,
        router=RouterSpec(config.num_experts, config.num_experts_per_tok, normalise=normalise),
        expert=ExpertSpec(inter, activation=config.hidden_act),
        shared=shared,
    )


FAMILIES = (
    Family(
        block="MixtralSparseMoeBlock",
        model_type="mixtral",
        parameters=_ROUTED,
        normalise=lambda gate: True,
        spec=lambda config: _config_spec(config, config.intermediate_size, True),
    ),
    Family(
        block="Qwen3MoeSparseMoeBlock",
        model_type="qwen3_moe",
        parameters=_ROUTED,
        normalise=lambda gate: bool(gate.norm_topk_prob),
        spec=lambda config: _config_spec(config, config.moe_intermediate_size, config.norm_topk_prob),
    ),
    Family(
        block="OlmoeSparseMoeBlock",
        model_type="olmoe",
        parameters=_ROUTED,
        normalise=lambda gate: bool(gate.norm_topk_prob),
        spec=lambda config: _config_spec(config, config.intermediate_size, config.norm_topk_prob),
    ),
    Family(
        block="Qwen2MoeSparseMoeBlock",
        model_type="qwen2_moe",
        parameters=_ROUTED | {*_SHARED, _SHARED_GATE},
        normalise=lambda gate: bool(gate.norm_topk_prob),
        spec=lambda config: _config_spec(
            config,
            config.moe_intermediate_size,
            config.norm_topk_prob,
            SharedSpec(config.shared_expert_intermediate_size, gated=True),
        ),
    ),
)

_BY_BLOCK = {family.block: family for family in FAMILIES}
_BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}


def read_block(block: torch.nn.Module) -> MoELayer:
    """The layer of a transformers MoE block; shares the block's memory.

    Raises:
        UnsupportedLayer: the block is of another class, or has a feature that this version cannot represent.
        ModelError: weights that are not loaded, or of shapes that contradict each other.
    """
    name = type(block).__name__
    family = _BY_BLOCK.get(name)
    if family is None:
        raise UnsupportedLayer(f"block class: expected {' or '.join(_BY_BLOCK)}, got {name}")
    weights = dict(block.named_parameters())
    _check_parameters(name, weights, family.parameters)

    gate_up, down, router = (weights[key] for key in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"))
    if gate_up.dim() != 3 or down.dim() != 3 or router.dim() != 2:
        shapes = ", ".join(str(list(weight.shape)) for weight in (gate_up, down, router))
        raise ModelError(f"{name}: expected weights [E, 2I, H], [E, H, I] and [E, H], got {shapes}")
    inter, hidden, experts = down.shape[2], router.shape[1], router.shape[0]
    for key, weight, shape in (
        ("experts.gate_up_proj", gate_up, (experts, 2 * inter, hidden)),
        ("experts.down_proj", down, (experts, hidden, inter)),
    ):
        if tuple(weight.shape) != shape:
            raise ModelError(f"{name}.{key}: expected shape {list(shape)}, got {list(weight.shape)}")

    gate: Any = block.gate
    shared_block: Any = getattr(block, "shared_expert", None)
    spec = LayerSpec(
        hidden=hidden,
        router=RouterSpec(experts, int(gate.top_k), normalise=family.normalise(gate)),
        expert=ExpertSpec(inter, activation=_activation(block.experts)),
        shared=SharedSpec(weights[_SHARED[2]].shape[1], gated=True) if shared_block else None,
    )
    if shared_block and _activation(shared_block) != spec.expert.activation:
        raise UnsupportedLayer(f"shared.activation: expected {spec.expert.activation}, got {_activation(shared_block)}")

    return MoELayer(
        spec,
        router=router,
        expert=lambda index: ExpertWeights(gate_up[index, :inter], gate_up[index, inter:], down[index]),
        shared=(lambda: ExpertWeights(*(weights[key] for key in _SHARED))) if shared_block else None,
        shared_gate=weights.get(_SHARED_GATE),
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
            raise UnsupportedLayer(f"block class: expected {' or '.join(_BY_BLOCK)}, got {type(module).__name__}")
    raise ModelError(f"{type(model).__name__} is not a MoE model: none of its modules has experts")


def layer_specs(config: Any) -> list[LayerSpec]:
    """The specs of the MoE layers that a transformers configuration describes, in model order.

    Raises:
        UnsupportedLayer: a MoE model of a family, or with a feature, that is not supported.
        ModelError: the configuration has no MoE layer.
    """
    family = _BY_MODEL_TYPE.get(config.model_type)
    if family is None:
        if any(hasattr(config, name) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
            raise UnsupportedLayer(f"model type: expected {' or '.join(_BY_MODEL_TYPE)}, got {config.model_type}")
        raise ModelError(f"{config.model_type} is not a MoE model: its configuration names no experts")
    dense = set(getattr(config, "mlp_only_layers", None) or ())
    step = getattr(config, "decoder_sparse_step", 1)
    if step < 1:
        raise ModelError(f"{config.model_type}: decoder_sparse_step: expected at least 1, got {step}; mend config.json")
    count = sum(
        1
        for index in range(config.num_hidden_layers)
        if index not in dense and config.num_experts > 0 and (index + 1) % step == 0
    )
    if count == 0:
        raise ModelError(f"{config.model_type}: expected a MoE layer, got {config.num_hidden_layers} dense ones")
    return [family.spec(config)] * count


def _check_parameters(name: str, weights: dict[str, torch.nn.Parameter], expected: frozenset[str]) -> None:
    if missing := sorted(expected - set(weights)):
        raise UnsupportedLayer(f"{name}: expected the parameter {missing[0]} of transformers 5.x, got none")
    if extra := sorted(set(weights) - expected):
        raise UnsupportedLayer(f"{name}: expected no parameter {extra[0]}: biases and adapters are not supported")
    for key, weight in weights.items():
        if weight.device.type == "meta":
            raise ModelError(f"{name}.{key}: expected a loaded weight, got one on the meta device")
        if not weight.dtype.is_floating_point:
            raise UnsupportedLayer(f"{name}.{key}: expected a floating point weight, got {weight.dtype}")


def _activation(module: Any) -> str:
    """Name of the module's activation function as the spec knows it."""
    name = type(module.act_fn).__name__
    return "silu" if name in _SILU else name
