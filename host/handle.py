"""A layer on a device: splits activations into commands, and makes results and reports of their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from host.ring import RING_COMMANDS, Command
from moe_hw.errors import DeviceError, InputError
from moe_hw.formats import Tokens, quantise_tokens
from moe_hw.image import LayerImage, aligned, input_record, read_output, read_routing, routes_record
from moe_hw.limits import Footprint
from moe_hw.registers import COMPLETION, COUNTERS
from moe_hw.report import Report
from moe_hw.result import Result
from moe_hw.routes import GivenRoutes
from moe_hw.stored import StoredLayer

if TYPE_CHECKING:
    from host.driver import Device

PATIENCE = 20
"""A command may take this many times the cycles it should."""

GRACE_CYCLES = 200_000
"""Cycles that any command may take on top."""


def place(address: int, footprint: Footprint, tokens: int) -> tuple[dict[str, int], int]:
    """Byte addresses of one command's records, one after the other from ``address`` on, and where they end."""
    sizes = {
        "input": footprint.input_bytes(tokens),
        "output": footprint.output_bytes(tokens),
        "routing": footprint.routing_bytes(tokens),
        "routes": footprint.routing_bytes(tokens) if footprint.spec.router.given else 0,
        "completion": COMPLETION.size_bytes,
    }
    addresses = {}
    for name, size in sizes.items():
        addresses[name] = address
        address += aligned(size)
    return addresses, address


class _Batch(NamedTuple):
    """Tokens of a command, and their routes if they are given: experts and weights."""

    tokens: Tokens
    routes: tuple[np.ndarray, np.ndarray] | None


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
        self.footprint = Footprint(image.spec, device.arch, image.bits, image.widths)
        self.max_tokens = self.footprint.max_tokens()
        self.address = address
        self._device: Device | None = device

    @property
    def workspace_bytes(self) -> int:
        """Room for hidden activations, and for the records of a full ring of the largest batches."""
        return self._hidden_bytes + RING_COMMANDS * place(0, self.footprint, self.max_tokens)[1]

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

    def __call__(self, x: torch.Tensor, routes: GivenRoutes | None = None) -> Result:
        """Run the layer.

        Parameters:
            x: floating point activations ``[..., hidden]``, on the CPU or not.
            routes: of all tokens, if the layer's spec says that they are given, and only then.

        Returns:
            ``output`` float32 of x's shape, ``experts`` and ``weights`` ``[tokens, top_k]``, and the ``report``.

        Raises:
            InputError: a wrong shape or type, NaN, Inf or a magnitude that the format cannot hold; routes that cannot
                be.
            DeviceTimeout: the device did not answer in time; it was reset and can be used again.
            DeviceError: the device answered an error; it can be used again.
        """
        device = self._connected()
        if not x.is_floating_point() or x.ndim < 1 or x.shape[-1] != self.spec.hidden:
            raise InputError(
                f"{self.name}: expected floating point activations [..., {self.spec.hidden}], "
                f"got {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
            )
        if self.spec.router.given != (routes is not None):
            wanted = "routes, since the layer has no router" if routes is None else "no routes, since it has a router"
            raise InputError(f"{self.name}: expected {wanted}")
        tokens = quantise_tokens(x.detach().reshape(-1, self.spec.hidden), self.spec.constant)
        parts = [slice(at, at + self.max_tokens) for at in range(0, len(tokens), self.max_tokens)]
        if routes is None:
            batches = [_Batch(tokens[part], None) for part in parts]
        else:
            experts, weights = routes.rounded(self.spec, len(tokens))
            batches = [_Batch(tokens[part], (experts[part], weights[part])) for part in parts]
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

    def _run(self, device: Device, batches: list[_Batch]) -> list[Result]:
        """Run at most a ring of batches together."""
        commands: list[Command] = []
        address = device.workspace + self._hidden_bytes
        for tokens, routes in batches:
            addresses, address = place(address, self.footprint, len(tokens))
            device.transport.write(addresses["input"], input_record(tokens))
            if routes is not None:
                device.transport.write(addresses["routes"], routes_record(*routes))
            cut = self.footprint.cut(len(tokens))
            commands.append((cut, {"layer": self.address, "hidden": device.workspace, **addresses}))
        bound = sum(GRACE_CYCLES + PATIENCE * self._expected_cycles(device, cut["tokens"]) for cut, _ in commands)
        completions = device.ring.run(commands, bound, self.name)
        return [
            self._collect(device, batch, addresses, completion)
            for batch, (_, addresses), completion in zip(batches, commands, completions, strict=True)
        ]

    def _expected_cycles(self, device: Device, tokens: int) -> int:
        """Cycles of a batch in which nothing overlaps and every choice is another expert."""
        footprint = self.footprint
        choices = tokens * self.spec.router.top_k
        moved = footprint.token_bytes(tokens) + footprint.weight_bytes(footprint.widest(choices))
        rate = min(device.transport.memory_bytes_per_cycle, device.arch.data_bits / 8)
        array = footprint.array_cycles(tokens, footprint.widest(1) * choices)
        return int(moved / rate) + array + footprint.vector_cycles(tokens)

    def _collect(
        self, device: Device, batch: _Batch, addresses: Mapping[str, int], completion: Mapping[str, int]
    ) -> Result:
        tokens = len(batch.tokens)
        output = device.transport.read(addresses["output"], self.footprint.output_bytes(tokens))
        if batch.routes is None:
            routing = device.transport.read(addresses["routing"], self.footprint.routing_bytes(tokens))
            experts, weights = read_routing(routing, tokens, self.spec)
        else:
            experts, weights = (torch.from_numpy(part[:, : self.spec.router.top_k].copy()) for part in batch.routes)
        choices = experts[experts >= 0].tolist()
        used = frozenset(choices)
        word_bytes = device.arch.data_bits // 8
        necessary = self.footprint.token_bytes(tokens) + self.footprint.weight_bytes(used)
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
            compute_limit_cycles=self.footprint.array_cycles(tokens, choices),
        )
        return Result(read_output(output, tokens, self.spec), experts, weights, report)
