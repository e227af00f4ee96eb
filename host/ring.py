"""The command ring: runs commands, with a bound on the time, and reads how they ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from host.transport import Transport
from moe_hw.arch import SEGMENT_ALIGN
from moe_hw.errors import DeviceError, DeviceTimeout
from moe_hw.registers import COMMAND, COMMAND_MAGIC, COMPLETION, STATUS_TEXT, Status, Waiting

RING_COMMANDS = 8
"""Commands that fit the ring."""

Command = tuple[Mapping[str, int], Mapping[str, int]]
"""How the batch is cut (``Footprint.cut``), and the byte addresses of its layer and records."""

RING_BYTES = RING_COMMANDS * COMMAND.size_bytes

_COUNT = 1 << 32


class Ring:
    """A ring of commands in device memory. Making one resets the device.

    Parameters:
        transport: the device.
        base: byte address of ``RING_BYTES`` of its memory.
    """

    def __init__(self, transport: Transport, base: int):
        self._transport = transport
        self._base = base
        self.restart()

    def restart(self) -> None:
        """Reset the device and tell it about the ring; pending commands are lost."""
        self._transport.reset()
        self._transport.csr_write("ring_base", self._base // SEGMENT_ALIGN)
        self._transport.csr_write("ring_mask", RING_COMMANDS - 1)
        self._tail = self._transport.csr_read("head")

    def run(self, commands: Sequence[Command], max_cycles: int, name: str) -> list[dict[str, int]]:
        """Run commands and wait for all of them.

        Parameters:
            commands: at most ``RING_COMMANDS``.
            max_cycles: when to give up.
            name: what errors call the work.

        Returns:
            The completion record of each command.

        Raises:
            DeviceTimeout: names what the device waits for; the device is reset and can be used again.
            DeviceError: a command failed, or its record was not written.
        """
        first = self._tail
        for number, (cut, addresses) in enumerate(commands, first):
            units = {word: address // SEGMENT_ALIGN for word, address in addresses.items()}
            command = COMMAND.pack({"magic": COMMAND_MAGIC, **cut, **units})
            self._transport.write(self._base + number % RING_COMMANDS * COMMAND.size_bytes, command)
            # A record that the device does not write keeps a sequence number that cannot be its own.
            stale = np.full(COMPLETION.size, (number - 1) % _COUNT, np.dtype("<u4"))
            self._transport.write(addresses["completion"], stale)
        try:
            self._wait((first + len(commands)) % _COUNT, max_cycles, name)
        except BaseException:
            self.restart()
            raise
        return [
            self._completion(addresses["completion"], number % _COUNT, name)
            for number, (_, addresses) in enumerate(commands, first)
        ]

    def _wait(self, tail: int, max_cycles: int, name: str) -> None:
        self._transport.csr_write("tail", tail)
        self._transport.wait(tail, max_cycles)
        head = self._transport.csr_read("head")
        if head != tail:
            state = self._transport.csr_read("state")
            blocked = ", ".join(flag.name or "" for flag in Waiting if flag & state) or "nothing"
            raise DeviceTimeout(
                f"{name}: expected all batches within {max_cycles:,} cycles, got none for {(tail - head) % _COUNT} of "
                f"them; the device waits for: {blocked}; it was reset, check its memory and clock"
            )
        self._tail = tail

    def _completion(self, address: int, sequence: int, name: str) -> dict[str, int]:
        data = self._transport.read(address, COMPLETION.size_bytes)
        record = COMPLETION.unpack(data.view(np.dtype("<u4")))
        if record["sequence"] != sequence:
            raise DeviceError(
                f"{name}: expected the completion record of command {sequence}, got that of {record['sequence']}; "
                "the record was not written, check the device's memory"
            )
        status = record["status"]
        if status != Status.OK:
            reason = STATUS_TEXT[Status(status)] if status in STATUS_TEXT else "a code this version does not know"
            raise DeviceError(f"{name}: the device answered status {status}: {reason}")
        return record
