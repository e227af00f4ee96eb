"""The layer of a transformers MoE block of a known family."""

from __future__ import annotations

from typing import Any

import torch

from moe_hw.errors import ModelError, UnsupportedLayer
from moe_hw.experts import check_floats, read_experts
from moe_hw.families import BY_BLOCK
from moe_hw.layer import ExpertWeights, MoELayer
from moe_hw.shared import read_shared
from moe_hw.spec import LayerSpec, RouterSpec


def read_spec(block: torch.nn.Module) -> LayerSpec:
    """The spec of a transformers MoE block, whose weights need not be loaded.

    Raises:
        UnsupportedLayer: the block is of another class, or has a feature that this version cannot represent.
        ModelError: weights of shapes that contradict each other.
    """
    return _Reader(block).spec


def read_block(block: torch.nn.Module) -> MoELayer:
    """The layer of a transformers MoE block; shares the block's memory.

    A factor of the shared expert's output becomes part of its ``down`` matrix.

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
        self.weights = dict(block.named_buffers()) | dict(block.named_parameters())
        self.experts = read_experts(block.get_submodule(family.experts))
        shared = getattr(block, family.shared, None) if family.shared else None
        self.shared = read_shared(shared) if shared is not None else None
        family.check(block)
        self._check_parameters()
        self.spec = self._spec()

    def _check_parameters(self) -> None:
        """A block with others than the family's has a feature that is not supported."""
        family = self.family
        expected = {family.router, *filter(None, (family.shared_gate, family.output_bias))}
        if missing := sorted(expected - set(self.weights)):
            raise UnsupportedLayer(f"{self.name}: expected the parameter {missing[0]} of transformers 5.x, got none")
        apart = tuple(f"{name}." for name in (family.shared, family.after) if name)
        own = {name for name, _ in self.block.named_parameters() if not self._is_of_experts(name)}
        own = {name for name in own if not (apart and name.startswith(apart))}
        if extra := sorted(own - expected - {family.router_bias, family.correction}):
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
        knows: Any = self.block.get_submodule(family.top_k)
        choice = RouterSpec(
            experts.count,
            int(knows.top_k),
            score=family.score(knows),
            normalise=family.normalise(knows),
            bias=family.router_bias in self.weights,
            correction=family.corrects if family.correction in self.weights else None,
            groups=family.groups(knows),
            epsilon=family.epsilon if family.normalise(knows) else 0.0,
            scale=family.scale(self.block),
        )
        if self.shared is None:
            return LayerSpec(experts.hidden, choice, experts.spec)
        return LayerSpec(experts.hidden, choice, *self.shared.spec(experts.spec, bool(family.shared_gate)))

    def layer(self) -> MoELayer:
        check_loaded(self.block)
        shared, shared_scale = self.shared, self.family.shared_scale(self.block)
        correction = self.weights.get(self.family.correction)

        def scaled(weights: ExpertWeights) -> ExpertWeights:
            return weights if shared_scale == 1 else weights._replace(down=weights.down.float() * shared_scale)

        return MoELayer(
            self.spec,
            router=self.weights[self.family.router],
            router_bias=self.weights.get(self.family.router_bias),
            correction=None if correction is None else correction.flatten(),
            expert=self.experts.read,
            shared=None if shared is None else lambda: scaled(shared.read()),
            shared_gate=self.weights.get(self.family.shared_gate),
        )


def check_loaded(module: torch.nn.Module) -> None:
    """All weights of a module have values.

    Raises:
        ModelError: names the first that has not.
    """
    for key, weight in (*module.named_parameters(), *module.named_buffers()):
        if weight.device.type == "meta":
            name = type(module).__name__
            raise ModelError(f"{name}.{key}: expected a loaded weight, got one on the meta device")
