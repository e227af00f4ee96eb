"""The device's side of ``docs/bridge.md`` in plain Python, for benches of the bridge and tests of its driver."""

from __future__ import annotations

from moe_hw.bridge import GREETING, HEADER, LARGEST_COUNT, SEQUENCES, VERSION, WINDOW, Opcode, Status

CONTROL = (Opcode.HELLO, Opcode.RESET, Opcode.CLOCK)
CSRS = (Opcode.CSR_READ, Opcode.CSR_WRITE)
WRITES = (Opcode.RESET, Opcode.CSR_WRITE, Opcode.MEMORY_WRITE)


class Peer:
    """Answers the content of frames.

    Parameters:
        memory: device memory; what is behind it answers DECERR.
        csrs: the words; a reset clears them.
        addr_bits: of the memory's bus.
        largest_count: bytes of an access.
    """

    def __init__(self, memory: bytearray, csrs: list[int], addr_bits: int = 32, largest_count: int = LARGEST_COUNT):
        self.memory, self.csrs = memory, csrs
        self._addr_bits, self._largest = addr_bits, largest_count
        self.expected = 0
        self.in_session = False
        self._kept: dict[int, int] = {}
        self.clock = 0
        self.done = 0
        """Writes that had an effect."""

    def answer(self, content: bytes | None) -> bytes:
        """The content of the answer to a frame, None for a bad one."""
        if content is None:
            return bytes([self.expected, Status.MISSING])
        sequence, opcode, count, address = HEADER.unpack_from(content)
        data = content[HEADER.size :]
        sound = self._sound(opcode, count, address, data)
        if opcode == Opcode.HELLO and sound:
            self.in_session, self.expected = True, sequence
        if not self.in_session:
            return bytes([sequence, Status.NO_SESSION])
        behind = (self.expected - sequence) % SEQUENCES
        if behind > WINDOW:
            return bytes([self.expected, Status.MISSING])
        if behind and opcode in WRITES:
            return bytes([sequence, self._kept[sequence]])
        status, found = self._do(opcode, count, address, data) if sound else (Status.MALFORMED, b"")
        if not behind:
            self._kept[sequence] = status
            self.expected = (sequence + 1) % SEQUENCES
        return bytes([sequence, *found, status])

    def _sound(self, opcode: int, count: int, address: int, data: bytes) -> bool:
        if len(data) != (count if opcode in (Opcode.CSR_WRITE, Opcode.MEMORY_WRITE) else 0):
            return False
        if opcode in CONTROL:
            return count == 0
        if opcode in CSRS:
            return count == 4
        within = count >= 1 and address % self._largest + count <= self._largest
        return opcode in (Opcode.MEMORY_READ, Opcode.MEMORY_WRITE) and within

    def _do(self, opcode: int, count: int, address: int, data: bytes) -> tuple[Status, bytes]:
        self.done += opcode in WRITES
        if opcode == Opcode.HELLO:
            return Status.OK, GREETING.pack(address, VERSION, WINDOW, self._largest)
        if opcode == Opcode.CLOCK:
            self.clock = (self.clock + 1000) % (1 << 32)
            return Status.OK, self.clock.to_bytes(4, "little")
        if opcode == Opcode.RESET:
            self.csrs[:] = [0] * len(self.csrs)
            return Status.OK, b""
        if opcode in CSRS:
            if address % 4 or address // 4 >= len(self.csrs):
                return Status.BAD_ADDRESS, b""
            if opcode == Opcode.CSR_WRITE:
                self.csrs[address // 4] = int.from_bytes(data, "little")
                return Status.OK, b""
            return Status.OK, self.csrs[address // 4].to_bytes(4, "little")
        if address >> self._addr_bits:
            return Status.BAD_ADDRESS, b""
        if address + count > len(self.memory):
            return Status.DECERR, bytes(count if opcode == Opcode.MEMORY_READ else 0)
        if opcode == Opcode.MEMORY_WRITE:
            self.memory[address : address + count] = data
            return Status.OK, b""
        return Status.OK, bytes(self.memory[address : address + count])
