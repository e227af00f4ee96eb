"""The driver: loads layers into a device, feeds its command ring and reads results back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from host.memory import Allocator
from host.ring import RING_BYTES, RING_COMMANDS, Ring
from host.transport import Transport
from host.transports import open_transport
from moe_hw.errors import DeviceError, InputError
from moe_hw.formats import Tokens, quantise_tokens
from moe_hw.image import LayerImage, StoredLayer, aligned, input_record, read_output, read_routing
from moe_hw.layer import MoELayer
from moe_hw.limits import Footprint, check_layer
from moe_hw.quantised import QuantisedLayer
from moe_hw.registers import COMPLETION, COUNTERS, DEVICE_MAGIC, LAYOUT_VERSION
from moe_hw.report import Report
from moe_hw.result import Result

PATIENCE = 20
"""A command may take this many times the cycles it should."""

GRACE_CYCLES = 200_000
"""Cycles that any command may take on top."""


@dataclasses.dataclass(frozen=True)
class _Records:
    """Byte addresses of the records of one command."""

    input: int
    output: int
    routing: int
    completion: int
    end: int

    @classmethod
    def at(cls, address: int, footprint: Footprint, tokens: int) -> _Records:
        """The records of ``tokens`` tokens one after the other from ``address`` on."""
        output = address + aligned(footprint.input_bytes(tokens))
        routing = output + aligned(footprint.output_bytes(tokens))
        completion = routing + aligned(footprint.routing_bytes(tokens))
        return cls(address, output, routing, completion, completion + aligned(COMPLETION.size_bytes))


class Handle:
    """A layer on a device. Call it with activations.

    Attributes:
        name: what errors call the layer.
        spec: the layer's shape.
        footprint: its sizes as the accelerator counts them.
        max_tokens: tokens of the largest batch that the device takes at once; longer inputs are split.
    """

    def __init__(self, device: Device, name: str, image: LayerImage | StoredLayer, address: int):
        self.name = name
        self.spec = image.spec
        self.footprint = Footprint(image.spec, device.arch.columns, image.bits)
        self.max_tokens = self.footprint.max_tokens(device.arch)
        self.address = address
        self._device: Device | None = device

    def __call__(self, x: torch.Tensor) -> Result:
        """Run the layer.

        Parameters:
            x: floating point activations ``[..., hidden]``, on the CPU or not.

        Returns:
            ``output`` float32 of x's shape, ``experts`` and ``weights`` ``[tokens, top_k]``, and the ``report``.

        Raises:
            InputError: a wrong shape or type, NaN, Inf or a magnitude that the format cannot hold.
            DeviceTimeout: the device did not answer in time; it was reset and can be used again.
            DeviceError: the device answered an error; it can be used again.
        """
        if self._device is None:
            raise DeviceError(f"{self.name} was unloaded from its device; load it again")
        if not x.is_floating_point() or x.ndim < 1 or x.shape[-1] != self.spec.hidden:
            raise InputError(
                f"{self.name}: expected floating point activations [..., {self.spec.hidden}], "
                f"got {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
            )
        tokens = quantise_tokens(x.detach().reshape(-1, self.spec.hidden).cpu())
        result = self._device._run(self, tokens)
        return dataclasses.replace(result, output=result.output.reshape(x.shape))

    @property
    def loaded(self) -> bool:
        """The layer is still on its device."""
        return self._device is not None

    def _detach(self) -> None:
        self._device = None


class Device:
    """A connected accelerator.

    Parameters:
        transport: the way to it; closed with the device.

    Raises:
        DeviceError: it is not a moe-hw accelerator, or one of another version or configuration.
    """

    def __init__(self, transport: Transport):
        self.transport = transport
        self.arch = transport.arch
        self._check_identity()
        self.memory = Allocator(transport.memory_bytes)
        self._ring = Ring(transport, self.memory.alloc(RING_BYTES, "the command ring"))
        self._workspace = (0, 0)
        self._handles: list[Handle] = []

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload every layer and disconnect."""
        for handle in list(self._handles):
            self.unload(handle)
        self.transport.close()

    def load(
        self, layer: MoELayer | QuantisedLayer | StoredLayer, weight_format: str = "int4", name: str | None = None
    ) -> Handle:
        """Put a layer into device memory.

        Parameters:
            layer: float weights, quantised weights, or a layer of an opened image.
            weight_format: how to quantise float weights; the others have a format already.
            name: what errors call the layer.

        Raises:
            UsageError: an unknown weight format.
        ModelError: weights that are not finite.
        ImageError: the stored image is damaged.
        DeviceError: the layer does not fit the accelerator or its memory, or was packed for another one.
        """
        name = name or f"layer {len(self._handles)}"
        check_layer(layer.spec, self.arch, name)
        image = self._image(layer, weight_format, name)
        address = self.memory.alloc(image.size, name)
        try:
            handle = Handle(self, name, image, address)
            self._reserve_workspace(handle)
            for _, offset, data in image.segments():
                self.transport.write(address + offset, data)
        except BaseException:
            self.memory.free(address)
            raise
        self._handles.append(handle)
        return handle

    def unload(self, handle: Handle) -> None:
        """Free the memory of a layer; its handle cannot be called any more.

        Raises:
            DeviceError: the layer is not on this device.
        """
        if handle not in self._handles:
            raise DeviceError(f"{handle.name} is not on this device; it was unloaded, or loaded into another one")
        self._handles.remove(handle)
        self.memory.free(handle.address)
        handle._detach()

    def _check_identity(self) -> None:
        csr = self.transport.csr_read
        found_hash = csr("config_hash_low") | csr("config_hash_high") << 32
        for what, expected, found, advice in (
            ("magic word", DEVICE_MAGIC, csr("magic"), "load a moe-hw bitstream"),
            ("layout version", LAYOUT_VERSION, csr("version"), "generate the bitstream with this version"),
            ("configuration hash", self.transport.config_hash, found_hash, "use the bitstream of this board"),
        ):
            if found != expected:
                raise DeviceError(f"expected the device's {what} to be {expected:#x}, got {found:#x}; {advice}")

    def _image(
        self, layer: MoELayer | QuantisedLayer | StoredLayer, weight_format: str, name: str
    ) -> LayerImage | StoredLayer:
        if isinstance(layer, MoELayer):
            layer = QuantisedLayer(layer, weight_format)
        if isinstance(layer, QuantisedLayer):
            return LayerImage(layer, self.arch.columns)
        if layer.config_hash != self.arch.hash:
            raise DeviceError(
                f"{name} was packed for an accelerator of configuration {layer.config_hash:#018x}, "
                f"this one is {self.arch.hash:#018x}; pack it again for this board"
            )
        return layer

    def _reserve_workspace(self, handle: Handle) -> None:
        """Make room for the records of a full window of the layer's largest batches."""
        address, size = self._workspace
        needed = RING_COMMANDS * _Records.at(0, handle.footprint, handle.max_tokens).end
        if needed > size:
            larger = self.memory.alloc(needed, f"the inputs and outputs of {handle.name}")
            if size:
                self.memory.free(address)
            self._workspace = (larger, needed)

    def _run(self, handle: Handle, tokens: Tokens) -> Result:
        """Split ``tokens`` into batches, run them a window at a time, and join the results."""
        step = handle.max_tokens
        batches = [tokens[at : at + step] for at in range(0, len(tokens), step)]
        results: list[Result] = []
        for at in range(0, len(batches), RING_COMMANDS):
            results += self._run_window(handle, batches[at : at + RING_COMMANDS])
        report = sum((result.report for result in results if result.report), Report())
        top_k = handle.spec.router.top_k
        return Result(
            output=torch.cat([torch.zeros(0, handle.spec.hidden), *(result.output for result in results)]),
            experts=torch.cat([torch.zeros(0, top_k, dtype=torch.int64), *(result.experts for result in results)]),
            weights=torch.cat([torch.zeros(0, top_k), *(result.weights for result in results)]),
            report=report,
        )

    def _run_window(self, handle: Handle, batches: list[Tokens]) -> list[Result]:
        """Run at most a ring of batches together."""
        submitted: list[tuple[int, int, _Records]] = []
        address = self._workspace[0]
        bound = 0
        for tokens in batches:
            records = _Records.at(address, handle.footprint, len(tokens))
            address = records.end
            self.transport.write(records.input, input_record(tokens))
            sequence = self._ring.submit(
                len(tokens),
                layer=handle.address,
                input=records.input,
                output=records.output,
                routing=records.routing,
                completion=records.completion,
            )
            submitted.append((sequence, len(tokens), records))
            bound += GRACE_CYCLES + PATIENCE * self._expected_cycles(handle, len(tokens))
        self._ring.wait(bound, handle.name)
        return [self._collect(handle, *command) for command in submitted]

    def _expected_cycles(self, handle: Handle, tokens: int) -> int:
        """Cycles of a batch in which nothing overlaps and every choice is another expert."""
        footprint = handle.footprint
        experts = min(handle.spec.router.experts, tokens * handle.spec.router.top_k)
        moved = footprint.token_bytes(tokens) + footprint.weight_bytes(experts)
        rate = min(self.transport.memory_bytes_per_cycle, self.arch.data_bits / 8)
        return int(moved / rate) + footprint.array_cycles(tokens) + footprint.vector_cycles(tokens)

    def _collect(self, handle: Handle, sequence: int, tokens: int, records: _Records) -> Result:
        completion = self._ring.completion(records.completion, sequence, handle.name)
        output = self.transport.read(records.output, handle.footprint.output_bytes(tokens))
        routing = self.transport.read(records.routing, handle.footprint.routing_bytes(tokens))
        experts, weights = read_routing(routing, tokens, handle.spec)
        return Result(
            output=read_output(output, tokens, handle.spec),
            experts=experts,
            weights=weights,
            report=self._report(handle, tokens, completion, frozenset(experts.flatten().tolist())),
        )

    def _report(self, handle: Handle, tokens: int, completion: dict[str, int], experts: frozenset[int]) -> Report:
        necessary = handle.footprint.token_bytes(tokens) + handle.footprint.weight_bytes(len(experts))
        return Report(
            commands=1,
            tokens=tokens,
            counters={word.name: completion[word.name] for word in COUNTERS},
            experts=experts,
            dram_read_bytes=completion["read_words"] * self.arch.data_bits // 8,
            dram_write_bytes=completion["write_words"] * self.arch.data_bits // 8,
            necessary_bytes=necessary,
            memory_limit_cycles=necessary / self.transport.memory_bytes_per_cycle,
            compute_limit_cycles=handle.footprint.array_cycles(tokens),
        )


def open_device(url: str, progress: Callable[[str], None] | None = None) -> Device:
    """Connect to an accelerator.

    Parameters:
        url: ``sim:BOARD`` (a board's name or YAML file) or ``sim:DIRECTORY`` made by ``moe-hw generate``.
        progress: told what takes long, such as building a simulator for the first time.

    Raises:
        UsageError: an unknown scheme, board or directory.
        DeviceError: the device is not the one expected.
        SetupError: a tool that the device needs is missing.
    """
    return Device(open_transport(url, progress))
