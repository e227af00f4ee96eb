"""The driver: loads layers into a device, feeds its command ring and reads results back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from host.memory import Allocator
from host.transport import Transport
from host.transports import open_transport
from moe_hw.arch import SEGMENT_ALIGN
from moe_hw.errors import DeviceError, DeviceTimeout, InputError
from moe_hw.formats import Tokens, quantise_tokens
from moe_hw.image import LayerImage, StoredLayer, aligned, input_record, read_output, read_routing
from moe_hw.layer import MoELayer
from moe_hw.limits import Footprint, check_layer
from moe_hw.quantised import QuantisedLayer
from moe_hw.registers import (
    COMMAND,
    COMMAND_MAGIC,
    COMPLETION,
    COUNTERS,
    DEVICE_MAGIC,
    LAYOUT_VERSION,
    STATUS_TEXT,
    Status,
    Waiting,
)
from moe_hw.report import Report
from moe_hw.result import Result

RING_COMMANDS = 8
"""Commands of the ring, and batches that are submitted together."""

PATIENCE = 20
"""A command may take this many times the cycles it should."""

GRACE_CYCLES = 200_000
"""Cycles that any command may take on top."""


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Where the records of one command of a window lie, byte addresses."""

    input: int
    output: int
    routing: int
    completion: int
    end: int


def _place(footprint: Footprint, tokens: int, address: int) -> _Batch:
    output = address + aligned(tokens * footprint.spec.hidden_blocks * 66)
    routing = output + aligned(tokens * footprint.spec.hidden_blocks * 128)
    completion = routing + aligned(tokens * footprint.routing_entries * 8)
    return _Batch(address, output, routing, completion, completion + aligned(COMPLETION.size_bytes))


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
        self._ring = self.memory.alloc(RING_COMMANDS * COMMAND.size_bytes, "the command ring")
        self._workspace = (self._ring, 0)
        self._handles: list[Handle] = []
        self._restart()

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

    def _image(self, layer: MoELayer | QuantisedLayer | StoredLayer, weight_format: str, name: str) -> LayerImage | StoredLayer:
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
        needed = RING_COMMANDS * _place(handle.footprint, handle.max_tokens, 0).end
        if needed > size:
            larger = self.memory.alloc(needed, f"the inputs and outputs of {handle.name}")
            if size:
                self.memory.free(address)
            self._workspace = (larger, needed)

    def _restart(self) -> None:
        self.transport.reset()
        self.transport.csr_write("ring_base", self._ring // SEGMENT_ALIGN)
        self.transport.csr_write("ring_mask", RING_COMMANDS - 1)
        self._tail = self.transport.csr_read("head")

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

    def _run_window(self, handle: Handle, batches: Sequence[Tokens]) -> list[Result]:
        places: list[_Batch] = []
        address = self._workspace[0]
        first = self._tail
        for tokens in batches:
            place = _place(handle.footprint, len(tokens), address)
            address = place.end
            places.append(place)
            self._submit(handle, tokens, place)
        self._wait(handle, [len(tokens) for tokens in batches])
        sequence = range(first, first + len(batches))
        return [
            self._collect(handle, len(tokens), place, number & 0xFFFFFFFF)
            for tokens, place, number in zip(batches, places, sequence, strict=True)
        ]

    def _submit(self, handle: Handle, tokens: Tokens, place: _Batch) -> None:
        self.transport.write(place.input, input_record(tokens))
        self.transport.write(place.completion, np.full(COMPLETION.size, 0xFFFFFFFF, np.uint32))
        command = COMMAND.pack(
            {
                "magic": COMMAND_MAGIC,
                "tokens": len(tokens),
                "layer": handle.address // SEGMENT_ALIGN,
                "input": place.input // SEGMENT_ALIGN,
                "output": place.output // SEGMENT_ALIGN,
                "routing": place.routing // SEGMENT_ALIGN,
                "completion": place.completion // SEGMENT_ALIGN,
            }
        )
        self.transport.write(self._ring + self._tail % RING_COMMANDS * COMMAND.size_bytes, command)
        self._tail = (self._tail + 1) & 0xFFFFFFFF

    def _wait(self, handle: Handle, batches: Sequence[int]) -> None:
        bound = sum(GRACE_CYCLES + PATIENCE * self._expected_cycles(handle, tokens) for tokens in batches)
        try:
            self.transport.csr_write("tail", self._tail)
            self.transport.wait(self._tail, bound)
            head = self.transport.csr_read("head")
            state = Waiting(self.transport.csr_read("state"))
        except BaseException:
            self._restart()
            raise
        if head != self._tail:
            self._restart()
            blocked = ", ".join(flag.name or "" for flag in Waiting if flag in state) or "nothing"
            raise DeviceTimeout(
                f"{handle.name}: expected {sum(batches)} tokens within {bound:,} cycles, got no completion; "
                f"the device waits for: {blocked}; it was reset, check its memory and clock"
            )

    def _expected_cycles(self, handle: Handle, tokens: int) -> int:
        """Cycles of a batch in which nothing overlaps and every choice is another expert."""
        footprint = handle.footprint
        experts = min(handle.spec.router.experts, tokens * handle.spec.router.top_k)
        moved = footprint.token_bytes(tokens) + footprint.weight_bytes(experts)
        rate = min(self.transport.memory_bytes_per_cycle, self.arch.data_bits / 8)
        return int(moved / rate) + footprint.array_cycles(tokens) + footprint.vector_cycles(tokens)

    def _collect(self, handle: Handle, tokens: int, place: _Batch, sequence: int) -> Result:
        completion = COMPLETION.unpack(self.transport.read(place.completion, COMPLETION.size_bytes).view(np.uint32))
        if completion["sequence"] != sequence:
            raise DeviceError(
                f"{handle.name}: expected the completion record of command {sequence}, "
                f"got {completion['sequence']}; the record was not written, check the device's memory"
            )
        if completion["status"] != Status.OK:
            known = completion["status"] in STATUS_TEXT
            reason = STATUS_TEXT[Status(completion["status"])] if known else "an unknown status"
            raise DeviceError(f"{handle.name}: the device answered status {completion['status']}: {reason}")
        footprint, spec = handle.footprint, handle.spec
        output = self.transport.read(place.output, tokens * footprint.spec.hidden_blocks * 128)
        routing = self.transport.read(place.routing, tokens * footprint.routing_entries * 8)
        experts, weights = read_routing(routing, tokens, spec)
        return Result(
            output=read_output(output, tokens, spec),
            experts=experts,
            weights=weights,
            report=self._report(handle, tokens, completion, frozenset(experts.unique().tolist())),
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
