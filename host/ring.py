"""The command ring: submits commands, waits for them with a bound, and reads how they ended."""

from __future__ import annotations

import numpy as np

from host.transport import Transport
from moe_hw.arch import SEGMENT_ALIGN
from moe_hw.errors import DeviceError, DeviceTimeout
from moe_hw.registers import COMMAND, COMMAND_MAGIC, COMPLETION, STATUS_TEXT, Status, Waiting

RING_COMMANDS = 8
"""Commands that fit the ring."""

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

    def submit(self, tokens: int, **addresses: int) -> int:
        """Store a command; :meth:`wait` starts it. At most ``RING_COMMANDS`` may be waited for together.

        Parameters:
            tokens: tokens of the batch.
            addresses: byte addresses by the command's words: layer, input, output, routing and completion.

        Returns:
            The command's sequence number, which its completion record repeats.
        """
        sequence = self._tail
        units = {name: address // SEGMENT_ALIGN for name, address in addresses.items()}
        command = COMMAND.pack({"magic": COMMAND_MAGIC, "tokens": tokens, **units})
        # A record that the device does not write has a sequence number that is not in the ring.
        self._transport.write(
            addresses["completion"], np.full(COMPLETION.size, (sequence - 1) % _COUNT, np.dtype("<u4"))
        )
        self._transport.write(self._base + sequence % RING_COMMANDS * COMMAND.size_bytes, command)
        self._tail = (sequence + 1) % _COUNT
        return sequence

    def wait(self, max_cycles: int, name: str) -> None:
        """Start the commands that were submitted and wait for all of them.

        Parameters:
            max_cycles: when to give up.
            name: what errors call the work.

        Raises:
            DeviceTimeout: names what the device waits for; the device is reset and can be used again.
        """
        try:
            self._transport.csr_write("tail", self._tail)
            self._transport.wait(self._tail, max_cycles)
            head = self._transport.csr_read("head")
            state = self._transport.csr_read("state")
        except BaseException:
            self.restart()
            raise
        if head != self._tail:
            missing = (self._tail - head) % _COUNT
            self.restart()
            blocked = ", ".join(flag.name or "" for flag in Waiting if flag & state) or "nothing"
            raise DeviceTimeout(
                f"{name}: expected all batches within {max_cycles:,} cycles, got none for {missing} of them; "
                f"the device waits for: {blocked}; it was reset, check its memory and clock"
            )

    def completion(self, address: int, sequence: int, name: str) -> dict[str, int]:
        """The completion record of a command that was waited for.

        Raises:
            DeviceError: the command failed, or the record is not the command's.
        """
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
