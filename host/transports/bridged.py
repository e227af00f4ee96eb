"""A board behind its host bridge (``docs/bridge.md``), whatever line leads there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from boards import Board, load_board
from host import ddr3
from host.link import Link, Port, Request
from host.transport import Transport
from moe_hw.arch import Arch
from moe_hw.bridge import Opcode
from moe_hw.ddr3 import REGISTERS
from moe_hw.errors import UsageError
from moe_hw.fit import arch_of
from moe_hw.generated import names_generated, read_generated
from moe_hw.registers import csr_address

_PROGRESS_SECONDS = 1.0
_CLOCKS = 1 << 32
_CLOCK = Request(Opcode.CLOCK, "reading the clock", answer_bytes=4)


class BridgedTransport(Transport):
    """A device behind a line.

    Parameters:
        port: the line; closed with the transport.
        board: what is at its other end.
        arch: sizes of the accelerator.
        progress: told how far long transfers are.

    Raises:
        DeviceError: nobody answers, or not a bridge of this version.
    """

    def __init__(self, port: Port, board: Board, arch: Arch, progress: Callable[[str], None] | None = None):
        self._port = port
        self._link = Link(port)
        self._progress = progress
        self.arch = arch
        self.clock_mhz = board.clock_mhz
        self._memory = board.memory
        self.memory_bytes = board.memory.size_bytes
        self.memory_bytes_per_cycle = board.memory_bytes_per_cycle

    def start(self) -> None:
        if self._memory.type != "ddr3":
            return
        registers = _MemoryRegisters(self)
        if registers.read(["init_done"]) == [0]:
            ddr3.bring_up(registers, self._memory, self._port.name, self._progress)

    def read(self, address: int, size: int) -> np.ndarray:
        self._memory.check_range(address, size)
        out = np.empty(size, np.uint8)
        progress = self._progress_of("reading", size)

        def take(request: Request, data: bytes) -> None:
            offset = request.address - address
            out[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
            progress(len(data))

        self._link.exchange(
            (
                Request(Opcode.MEMORY_READ, f"reading {count} bytes at {start:#x}", start, count, b"", count)
                for start, count in self._pieces(address, size)
            ),
            take,
        )
        return out

    def write(self, address: int, data: np.ndarray) -> None:
        values = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self._memory.check_range(address, values.size)
        progress = self._progress_of("writing", values.size)

        def request(start: int, count: int) -> Request:
            piece = values[start - address : start - address + count].tobytes()
            return Request(Opcode.MEMORY_WRITE, f"writing {count} bytes at {start:#x}", start, count, piece)

        self._link.exchange(
            (request(start, count) for start, count in self._pieces(address, values.size)),
            lambda request, _: progress(request.count),
        )

    def csr_read(self, name: str) -> int:
        return self._words(_csr_read(name, csr_address(name)))[0]

    def csr_write(self, name: str, value: int) -> None:
        self._words(_csr_write(name, csr_address(name), value))

    def wait(self, until_head: int, max_cycles: int) -> None:
        # Counted by the device's clock: on a simulated line it is slower than that of this machine.
        read = _csr_read("head", csr_address("head"))
        head, last = self._words(read, _CLOCK)
        passed = 0
        while head != until_head and passed <= max_cycles:
            head, now = self._words(read, _CLOCK)
            passed += (now - last) % _CLOCKS
            last = now

    def reset(self) -> None:
        self._words(Request(Opcode.RESET, "the reset"))

    def close(self) -> None:
        self._port.close()

    def _words(self, *requests: Request) -> list[int]:
        """The word that each of ``requests`` is answered, in their order."""
        words = dict.fromkeys(map(id, requests), 0)
        self._link.exchange(
            requests, lambda request, data: words.update({id(request): int.from_bytes(data, "little")})
        )
        return list(words.values())

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """Address and count of each access: none crosses the bridge's boundary."""
        largest, end = self._link.largest_count, address + size
        while address < end:
            count = min(largest - address % largest, end - address)
            yield address, count
            address += count

    def _progress_of(self, verb: str, size: int) -> Callable[[int], None]:
        """Counts bytes, and tells about it once a second."""
        done, told = 0, time.monotonic()

        def count(more: int) -> None:
            nonlocal done, told
            done += more
            now = time.monotonic()
            if self._progress is not None and now > told + _PROGRESS_SECONDS:
                told = now
                self._progress(f"{verb} device memory: {done / 1e6:.1f} of {size / 1e6:.1f} MB")

        return count


class _MemoryRegisters:
    """The registers of a board's DDR3, as :class:`host.ddr3.Registers`."""

    def __init__(self, transport: BridgedTransport):
        self._transport = transport

    def write(self, values: Iterable[tuple[str, int]]) -> None:
        self._transport._words(*(_csr_write(name, REGISTERS[name], value) for name, value in values))

    def read(self, names: Sequence[str]) -> list[int]:
        return self._transport._words(*(_csr_read(name, REGISTERS[name]) for name in names))

    def pause(self, nanoseconds: float) -> None:
        cycles = nanoseconds * self._transport.clock_mhz / 1e3
        (begin,) = self._transport._words(_CLOCK)
        while (self._transport._words(_CLOCK)[0] - begin) % _CLOCKS < cycles:
            pass


def _csr_read(name: str, address: int) -> Request:
    return Request(Opcode.CSR_READ, f"reading the CSR {name}", address, 4, answer_bytes=4)


def _csr_write(name: str, address: int, value: int) -> Request:
    data = (value & 0xFFFFFFFF).to_bytes(4, "little")
    return Request(Opcode.CSR_WRITE, f"writing the CSR {name}", address, 4, data)


def parse_target(scheme: str, target: str, what: str, defaults: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The place and the options of ``PLACE?NAME=VALUE&NAME=VALUE``.

    Parameters:
        scheme: of the URL, for errors.
        what: a place is, for errors.
        defaults: of the options that there are; all others are refused.

    Raises:
        UsageError: there is no place, or an unknown option.
    """
    place, _, query = target.partition("?")
    if not place:
        raise UsageError(f"{scheme}:{target}: expected {what} before the options, got none")
    options = dict(defaults)
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in options:
            raise UsageError(f"{scheme}:{target}: expected one of the options {', '.join(options)}, got {name!r}")
        options[name] = value
    return place, options


def whole_number(url: str, name: str, text: str) -> int:
    """The value of an option.

    Raises:
        UsageError: it is no whole number above 0.
    """
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"{url}: {name}: expected a whole number above 0, got {text!r}")
    return int(text)


def connect(
    option: str, open_port: Callable[[], Port], progress: Callable[[str], None] | None
) -> BridgedTransport:
    """The device behind a line, which is opened when it is known what the device has to be.

    Parameters:
        option: a board's name or YAML file, or a directory made by ``moe-hw generate``.
        progress: told how far long transfers are.

    Raises:
        UsageError: there is no such board.
        DeviceError: the line cannot be opened, or nobody answers there.
    """
    if names_generated(option):
        generated = read_generated(Path(option))
        board, arch = generated.board, generated.arch
    else:
        board = load_board(option)
        arch = arch_of(board)
    port = open_port()
    try:
        return BridgedTransport(port, board, arch, progress)
    except BaseException:
        port.close()
        raise
