"""Runs the MoE blocks of a transformers model on a device, in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from host.driver import Device
from host.handle import Handle
from host.modules import ADAPTERS, AcceleratedBlock, AcceleratedExperts, AcceleratedLayer, LayerTotals, Nothing
from moe_hw.errors import UsageError
from moe_hw.quantised import QuantisedLayer
from moe_hw.report import Report
from moe_hw.sites import Site, moe_sites

Progress = Callable[[int, int, str], None]
"""Called with the layers done, the number of layers, and what comes next."""

INTERFACE = "moe_hw"
"""Name in transformers' experts interface."""


def _through_interface(
    module: torch.nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What a module of experts calls; its accelerated experts are an attribute and no submodule."""
    return module._moe_hw(hidden_states, top_k_index, top_k_weights)  # type: ignore[operator]


@dataclass(frozen=True)
class _Swap:
    """A replacement that can be taken back."""

    handle: Handle
    do: Callable[[], None]
    undo: Callable[[], None]


def _replace(site: Site, replacement: AcceleratedLayer, handle: Handle) -> _Swap:
    """Another module in its place."""
    return _Swap(
        handle,
        lambda: setattr(site.parent, site.attribute, replacement),
        lambda: setattr(site.parent, site.attribute, site.module),
    )


def _enter_interface(site: Site, replacement: AcceleratedExperts, handle: Handle) -> _Swap:
    """The module stays and calls the accelerator through transformers' experts interface."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    config: Any = site.module.config
    before = config._experts_implementation_internal
    shared = getattr(site.parent, site.shared) if site.shared else None

    def do() -> None:
        ALL_EXPERTS_FUNCTIONS.register(INTERFACE, _through_interface)
        object.__setattr__(site.module, "_moe_hw", replacement)
        config._experts_implementation_internal = INTERFACE
        if site.shared:
            setattr(site.parent, site.shared, Nothing())

    def undo() -> None:
        object.__delattr__(site.module, "_moe_hw")
        config._experts_implementation_internal = before
        if site.shared:
            setattr(site.parent, site.shared, shared)

    return _Swap(handle, do, undo)


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
            swap.undo()
            if swap.handle.loaded:
                self._device.unload(swap.handle)
        self._swaps = []
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def accelerate(
    model: torch.nn.Module,
    device: Device,
    weight_format: str | Sequence[str] = "int4",
    check: bool = False,
    scales: str = "largest",
    progress: Progress | None = None,
) -> Acceleration:
    """Run the MoE layers of ``model`` on ``device`` from now on.

    Blocks are replaced in place and keep their signature, so ``model.generate()`` works as before. Of a block whose
    router the accelerator cannot run, the experts alone run there, through transformers' experts interface if they
    take part in it; :class:`LayerTotals` says so. Either all layers are accelerated, or model and device stay as they
    were.

    Parameters:
        model: a transformers 5.x model, in inference mode.
        device: has to hold the weights of all MoE layers.
        weight_format: how the experts' weights are quantised, as of ``moe_hw.formats.LayerFormat``; of all layers, or
            one for each.
        check: compare every call with the golden model, bit for bit; see :class:`LayerTotals`.
        scales: how their scales are chosen, ``largest``, ``mse`` or ``grid``; see ``moe_hw.formats.quantise``.
        progress: told about each layer before it is loaded.

    Raises:
        ModelError: the model has no MoE blocks.
        UnsupportedLayer: a block that this version cannot represent; the message names the feature.
        DeviceError: a layer does not fit the accelerator or its memory.
        UsageError: the model is accelerated already, or is set to return router logits; formats of other layers or
            experts than there are.
    """
    if any(isinstance(module, AcceleratedLayer) or hasattr(module, "_moe_hw") for module in model.modules()):
        raise UsageError("the model is accelerated already; restore() it first")
    sites = moe_sites(model)
    routes_here = any(site.family for site in sites)
    if routes_here:
        _refuse_router_logits(model, (), {})
    formats = [weight_format] * len(sites) if isinstance(weight_format, str) else weight_format
    if len(formats) != len(sites):
        raise UsageError(f"weight_format: expected one for each of {len(sites)} MoE layers, got {len(formats)}")
    layers: list[LayerTotals] = []
    swaps: list[_Swap] = []
    try:
        for number, site in enumerate(sites):
            if progress:
                progress(number, len(sites), site.name)
            quantised = QuantisedLayer(site.layer(), formats[number], site.name, scales)
            handle = device.load(quantised, name=site.name)
            layers.append(LayerTotals(site.name, site.stays))
            swaps.append(swap_of(site, handle, layers[-1], quantised if check else None))
    except BaseException:
        for swap in swaps:
            device.unload(swap.handle)
        raise
    for swap in swaps:
        swap.do()
    hook = None
    if routes_here:
        hook = model.register_forward_pre_hook(_refuse_router_logits, with_kwargs=True)
    if progress:
        progress(len(sites), len(sites), "all layers are loaded")
    return Acceleration(device, layers, swaps, hook)


def swap_of(site: Site, handle: Handle, totals: LayerTotals, checked: QuantisedLayer | None) -> _Swap:
    """The replacement of a layer, not done yet."""
    if site.family is not None:
        family, module = site.family, site.module
        bias = module.get_parameter(family.output_bias) if family.output_bias else None
        after = module.get_submodule(family.after) if family.after else None
        block = AcceleratedBlock(handle, totals, checked, bias, after, family.returns_scores)
        return _replace(site, block.train(site.module.training), handle)
    kind = type(site.module).__name__
    experts = ADAPTERS.get(kind, AcceleratedExperts)(handle, totals, checked).train(site.module.training)
    return _replace(site, experts, handle) if kind in ADAPTERS else _enter_interface(site, experts, handle)


def _refuse_router_logits(model: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """The router runs on the device, which returns choices and weights but no logits."""
    asked = kwargs.get("output_router_logits")
    if asked is None:
        asked = getattr(getattr(model, "config", None), "output_router_logits", False)
    if asked:
        raise UsageError("expected output_router_logits=False: an accelerated router returns no logits; switch it off")
