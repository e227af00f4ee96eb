"""A board at a serial port, behind its host bridge (``docs/bridge.md``)."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from boards import DEFAULT_BOARD, Board, load_board
from host import ddr3
from host.link import Link, Request
from host.transport import Transport
from moe_hw.arch import Arch
from moe_hw.bridge import BAUD, Opcode
from moe_hw.ddr3 import REGISTERS
from moe_hw.errors import DeviceError, UsageError
from moe_hw.fit import arch_of
from moe_hw.generated import names_generated, read_generated
from moe_hw.registers import csr_address

_POLL_SECONDS = 0.02
_WRITE_SECONDS = 5.0
_PROGRESS_SECONDS = 1.0
_CLOCKS = 1 << 32
_CLOCK = Request(Opcode.CLOCK, "reading the clock", answer_bytes=4)


class SerialPort:
    """A serial port, as a :class:`host.link.Port`.

    Parameters:
        path: the system's name of it.
        baud: bits per second.

    Raises:
        DeviceError: it is not there, is no serial port, another program has it, or it may not be opened.
    """

    def __init__(self, path: str, baud: int):
        import serial

        self.name = path
        self.bytes_per_second = baud / 10
        try:
            self._serial = serial.Serial(
                path, baud, timeout=_POLL_SECONDS, write_timeout=_WRITE_SECONDS, exclusive=True
            )
        except (OSError, ValueError) as error:
            raise DeviceError(_reason(path, baud, error)) from None
        # Not every system or driver has it; without it an FTDI chip keeps answers for up to 16 ms.
        with contextlib.suppress(OSError, ValueError, AttributeError, NotImplementedError):
            self._serial.set_low_latency_mode(True)

    def read(self, wait: bool) -> bytes:
        def arrived() -> bytes:
            first = self._serial.read(1) if wait else b""
            return first + self._serial.read(self._serial.in_waiting)

        return self._guarded(arrived)

    def write(self, data: bytes) -> None:
        self._guarded(lambda: self._serial.write(data))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # if it has gone away it is closed all the same
            self._serial.close()

    def _guarded(self, action: Callable[[], Any]) -> Any:
        import serial

        try:
            return action()
        except serial.SerialTimeoutException:
            raise DeviceError(
                f"{self.name}: expected the port to take bytes within {_WRITE_SECONDS:g} s, it did not; "
                "check cable and power of the board, and open it again"
            ) from None
        except (OSError, TypeError) as error:  # TypeError: pyserial, of a port that was closed
            raise DeviceError(
                f"{self.name}: expected an open port, it has gone away ({error}); plug the board in and open it again"
            ) from None


class SerialTransport(Transport):
    """A device behind a serial port.

    Parameters:
        port: closed with the transport.
        board: what is at its other end.
        arch: sizes of the accelerator.
        progress: told how far long transfers are.

    Raises:
        DeviceError: nobody answers, or not a bridge of this version.
    """

    def __init__(self, port: SerialPort, board: Board, arch: Arch, progress: Callable[[str], None] | None = None):
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

    def __init__(self, transport: SerialTransport):
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


def open_serial(target: str, progress: Callable[[str], None] | None = None) -> SerialTransport:
    """Connect to a board.

    Parameters:
        target: the port, and behind a ``?`` options joined by ``&``: ``board``, a board's name or YAML file or a
            directory made by ``moe-hw generate``, and ``baud``.
        progress: told how far long transfers are.

    Raises:
        UsageError: an unknown option or board.
        DeviceError: the port cannot be opened, or nobody answers there.
    """
    path, _, query = target.partition("?")
    if not path:
        raise UsageError(f"serial:{target}: expected a port before the options, such as /dev/ttyUSB0, got none")
    options = {"board": DEFAULT_BOARD, "baud": str(BAUD)}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in options:
            raise UsageError(f"serial:{target}: expected one of the options {', '.join(options)}, got {name!r}")
        options[name] = value
    if not options["baud"].isdecimal() or int(options["baud"]) == 0:
        raise UsageError(f"serial:{target}: baud: expected a whole number above 0, got {options['baud']!r}")
    if names_generated(options["board"]):
        generated = read_generated(Path(options["board"]))
        board, arch = generated.board, generated.arch
    else:
        board = load_board(options["board"])
        arch = arch_of(board)
    port = SerialPort(path, int(options["baud"]))
    try:
        return SerialTransport(port, board, arch, progress)
    except BaseException:
        port.close()
        raise


def _reason(path: str, baud: int, error: Exception) -> str:
    """Why a port could not be opened, and what to do."""
    from serial.tools.list_ports import comports

    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        others = ", ".join(sorted(port.device for port in comports())) or "none"
        return f"expected a serial port at {path}, there is none; plug the board in (ports of this machine: {others})"
    if number in (errno.EACCES, errno.EPERM):
        return f"{path}: expected permission to open it, got none; on Linux join the group of the port: dialout or uucp"
    if number in (errno.EAGAIN, errno.EBUSY):
        return f"{path}: expected to be its only user, another program has it open; end that one"
    if isinstance(error, ValueError):
        return f"{path}: expected a port that can do {baud} baud, got: {error}"
    return f"{path}: expected a serial port, got: {error}"
