"""A layer on a device: splits activations into commands, and makes results and reports of their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from host.ring import RING_COMMANDS, Command
from moe_hw.errors import DeviceError, InputError
from moe_hw.formats import Tokens, quantise_tokens
from moe_hw.image import LayerImage, StoredLayer, aligned, input_record, read_output, read_routing
from moe_hw.limits import Footprint
from moe_hw.registers import COMPLETION, COUNTERS
from moe_hw.report import Report
from moe_hw.result import Result

if TYPE_CHECKING:
    from host.driver import Device

PATIENCE = 20
"""A command may take this many times the cycles it should."""

GRACE_CYCLES = 200_000
"""Cycles that any command may take on top."""


def _place(address: int, footprint: Footprint, tokens: int) -> tuple[dict[str, int], int]:
    """Byte addresses of one command's records, one after the other from ``address`` on, and where they end."""
    sizes = {
        "input": footprint.input_bytes(tokens),
        "output": footprint.output_bytes(tokens),
        "routing": footprint.routing_bytes(tokens),
        "completion": COMPLETION.size_bytes,
    }
    addresses = {}
    for name, size in sizes.items():
        addresses[name] = address
        address += aligned(size)
    return addresses, address


class Handle:
    """A layer on a device, made by ``Device.load``. Call it with activations.

    Attributes:
        name: what errors call the layer.
        spec: the layer's shape.
        footprint: its sizes as the accelerator counts them.
        max_tokens: tokens of the largest batch that the device takes at once; longer inputs are split.
        address: byte address of its image.
    """

    def __init__(self, device: Device, name: str, image: LayerImage | StoredLayer, address: int):
        self.name = name
        self.spec = image.spec
        self.footprint = Footprint(image.spec, device.arch, image.bits)
        self.max_tokens = self.footprint.max_tokens()
        self.address = address
        self._device: Device | None = device

    @property
    def workspace_bytes(self) -> int:
        """Room for hidden activations, and for the records of a full ring of the largest batches."""
        return self._hidden_bytes + RING_COMMANDS * _place(0, self.footprint, self.max_tokens)[1]

    @property
    def _hidden_bytes(self) -> int:
        """Room for the hidden activations of one batch: commands run one after the other and share it."""
        return aligned(self.footprint.hidden_bytes(self.max_tokens))

    @property
    def loaded(self) -> bool:
        """The layer is still on its device."""
        return self._device is not None

    def unload(self) -> None:
        """Free the layer's device memory; the handle cannot be called any more.

        Raises:
            DeviceError: it was unloaded before.
        """
        self._connected().unload(self)

    def detach(self) -> None:
        """Forget the device; ``Device.unload`` calls it."""
        self._device = None

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
        device = self._connected()
        if not x.is_floating_point() or x.ndim < 1 or x.shape[-1] != self.spec.hidden:
            raise InputError(
                f"{self.name}: expected floating point activations [..., {self.spec.hidden}], "
                f"got {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
            )
        tokens = quantise_tokens(x.detach().reshape(-1, self.spec.hidden))
        batches = [tokens[at : at + self.max_tokens] for at in range(0, len(tokens), self.max_tokens)]
        results: list[Result] = []
        for at in range(0, len(batches), RING_COMMANDS):
            results += self._run(device, batches[at : at + RING_COMMANDS])
        top_k = self.spec.router.top_k
        output = torch.cat([torch.zeros(0, self.spec.hidden), *(result.output for result in results)])
        return Result(
            output=output.reshape(x.shape),
            experts=torch.cat([torch.zeros(0, top_k, dtype=torch.int64), *(result.experts for result in results)]),
            weights=torch.cat([torch.zeros(0, top_k), *(result.weights for result in results)]),
            report=sum((result.report for result in results if result.report), Report()),
        )

    def _connected(self) -> Device:
        if self._device is None:
            raise DeviceError(f"{self.name} was unloaded from its device; load it again")
        return self._device

    def _run(self, device: Device, batches: list[Tokens]) -> list[Result]:
        """Run at most a ring of batches together."""
        commands: list[Command] = []
        address = device.workspace + self._hidden_bytes
        for tokens in batches:
            addresses, address = _place(address, self.footprint, len(tokens))
            device.transport.write(addresses["input"], input_record(tokens))
            cut = self.footprint.cut(len(tokens))
            commands.append((cut, {"layer": self.address, "hidden": device.workspace, **addresses}))
        bound = sum(GRACE_CYCLES + PATIENCE * self._expected_cycles(device, cut["tokens"]) for cut, _ in commands)
        completions = device.ring.run(commands, bound, self.name)
        return [
            self._collect(device, cut["tokens"], addresses, completion)
            for (cut, addresses), completion in zip(commands, completions, strict=True)
        ]

    def _expected_cycles(self, device: Device, tokens: int) -> int:
        """Cycles of a batch in which nothing overlaps and every choice is another expert."""
        footprint = self.footprint
        experts = min(self.spec.router.experts, tokens * self.spec.router.top_k)
        moved = footprint.token_bytes(tokens) + footprint.weight_bytes(experts)
        rate = min(device.transport.memory_bytes_per_cycle, device.arch.data_bits / 8)
        return int(moved / rate) + footprint.array_cycles(tokens) + footprint.vector_cycles(tokens)

    def _collect(
        self, device: Device, tokens: int, addresses: Mapping[str, int], completion: Mapping[str, int]
    ) -> Result:
        output = device.transport.read(addresses["output"], self.footprint.output_bytes(tokens))
        routing = device.transport.read(addresses["routing"], self.footprint.routing_bytes(tokens))
        experts, weights = read_routing(routing, tokens, self.spec)
        used = frozenset(experts.flatten().tolist())
        word_bytes = device.arch.data_bits // 8
        necessary = self.footprint.token_bytes(tokens) + self.footprint.weight_bytes(len(used))
        report = Report(
            commands=1,
            tokens=tokens,
            counters={word.name: completion[word.name] for word in COUNTERS},
            experts=used,
            dram_read_bytes=completion["read_words"] * word_bytes,
            # The completion record is not among the words that it counts.
            dram_write_bytes=completion["write_words"] * word_bytes + COMPLETION.size_bytes,
            necessary_bytes=necessary,
            memory_limit_cycles=necessary / device.transport.memory_bytes_per_cycle,
            compute_limit_cycles=self.footprint.array_cycles(tokens),
        )
        return Result(read_output(output, tokens, self.spec), experts, weights, report)
