"""Runs the MoE blocks of a transformers model on a device, in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from host.driver import Device
from host.handle import Handle
from moe_hw.errors import UsageError
from moe_hw.families import moe_blocks
from moe_hw.layer import MoELayer
from moe_hw.quantised import QuantisedLayer
from moe_hw.report import Report
from moe_hw.twins.layer import golden

Progress = Callable[[int, int, str], None]
"""Called with the layers done, the number of layers, and what comes next."""


@dataclass
class LayerTotals:
    """What one layer did so far.

    Attributes:
        name: qualified name of the block in the model.
        calls: calls of the block.
        report: sum of the calls' reports.
        equal: calls whose output, experts and weights had exactly the golden model's bits; counted only with ``check``.
        failed: calls that differed in at least one bit.
    """

    name: str
    calls: int = 0
    report: Report = field(default_factory=Report)
    equal: int = 0
    failed: int = 0


class AcceleratedBlock(torch.nn.Module):
    """Stands in for a MoE block of a transformers model; inference only.

    Parameters:
        handle: the layer on the device.
        totals: where calls are counted.
        checked: the layer's quantised weights if each call is to be compared with the golden model.
    """

    def __init__(self, handle: Handle, totals: LayerTotals, checked: QuantisedLayer | None):
        super().__init__()
        self._handle = handle
        self._totals = totals
        self._checked = checked

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence, hidden]`` to the same shape, type and place."""
        if self.training:
            raise UsageError(f"{self._totals.name}: expected a model in inference mode; call model.eval()")
        result = self._handle(hidden_states)
        self._totals.calls += 1
        self._totals.report += result.report or Report()
        if self._checked is not None:
            tokens = hidden_states.detach().reshape(-1, hidden_states.shape[-1]).cpu()
            expected = golden(self._checked, tokens)
            equal = (
                torch.equal(result.output.reshape(tokens.shape), expected.output)
                and torch.equal(result.experts, expected.experts)
                and torch.equal(result.weights, expected.weights)
            )
            self._totals.equal += equal
            self._totals.failed += not equal
        return result.output.to(dtype=hidden_states.dtype, device=hidden_states.device)


@dataclass(frozen=True)
class _Swap:
    parent: torch.nn.Module
    attribute: str
    block: torch.nn.Module
    handle: Handle


class Acceleration:
    """An accelerated model's counters, and the way back. Made by :func:`accelerate`.

    Attributes:
        layers: one entry a MoE block, in the order of the model.
    """

    def __init__(self, device: Device, layers: list[LayerTotals], swaps: list[_Swap], hook: Any):
        self.layers = layers
        self._device = device
        self._swaps = swaps
        self._hook = hook

    @property
    def report(self) -> Report:
        """Sum over all layers."""
        return sum((layer.report for layer in self.layers), Report())

    @property
    def equal(self) -> int:
        """Checked layer calls that were bit-exact."""
        return sum(layer.equal for layer in self.layers)

    @property
    def failed(self) -> int:
        """Checked layer calls that differed."""
        return sum(layer.failed for layer in self.layers)

    def restore(self) -> None:
        """Put the model's own blocks back and free the device's memory; the counters stay."""
        for swap in self._swaps:
            setattr(swap.parent, swap.attribute, swap.block)
            if swap.handle.loaded:
                self._device.unload(swap.handle)
        self._swaps = []
        self._hook.remove()


def accelerate(
    model: torch.nn.Module,
    device: Device,
    weight_format: str = "int4",
    check: bool = False,
    progress: Progress | None = None,
) -> Acceleration:
    """Run every MoE block of ``model`` on ``device`` from now on.

    The blocks are replaced in place and keep their signature, so ``model.generate()`` works as before. Either all
    of them are replaced, or the model and the device stay as they were.

    Parameters:
        model: a transformers 5.x model, in inference mode.
        device: has to hold the weights of all MoE layers.
        weight_format: how the experts' weights are quantised.
        check: compare every call with the golden model, bit for bit; see :class:`LayerTotals`.
        progress: told about each layer before it is loaded.

    Raises:
        ModelError: the model has no MoE blocks.
        UnsupportedLayer: a block that this version cannot represent; the message names the feature.
        DeviceError: a layer does not fit the accelerator or its memory.
        UsageError: the model is accelerated already, or is set to return router logits.
    """
    if any(isinstance(module, AcceleratedBlock) for module in model.modules()):
        raise UsageError("the model is accelerated already; restore() it first")
    _refuse_router_logits(model, (), {})
    blocks = moe_blocks(model)
    layers: list[LayerTotals] = []
    swaps: list[_Swap] = []
    replacements: list[AcceleratedBlock] = []
    try:
        for number, (name, parent, attribute, block) in enumerate(blocks):
            if progress:
                progress(number, len(blocks), name)
            quantised = QuantisedLayer(MoELayer.from_module(block), weight_format, name)
            handle = device.load(quantised, name=name)
            totals = LayerTotals(name)
            layers.append(totals)
            swaps.append(_Swap(parent, attribute, block, handle))
            replacements.append(AcceleratedBlock(handle, totals, quantised if check else None).train(block.training))
    except BaseException:
        for swap in swaps:
            device.unload(swap.handle)
        raise
    for swap, replacement in zip(swaps, replacements, strict=True):
        setattr(swap.parent, swap.attribute, replacement)
    hook = model.register_forward_pre_hook(_refuse_router_logits, with_kwargs=True)
    if progress:
        progress(len(blocks), len(blocks), "all layers are loaded")
    return Acceleration(device, layers, swaps, hook)


def _refuse_router_logits(model: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """The router runs on the device, which returns choices and weights but no logits."""
    asked = kwargs.get("output_router_logits")
    if asked is None:
        asked = getattr(getattr(model, "config", None), "output_router_logits", False)
    if asked:
        raise UsageError("expected output_router_logits=False: an accelerated router returns no logits; switch it off")
