"""The simulated board: one accelerator, its memory and its CSRs, for the host driver."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boards import Board
from moe_hw.arch import Arch
from moe_hw.errors import DeviceError, DeviceTimeout, SetupError
from sim import dram, native

_SLICE = 100_000
"""Cycles between two looks at the keyboard."""

_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_RESPONSES = {2: "SLVERR", 3: "DECERR"}
_TIMEOUT = -1


class ProtocolViolation(RuntimeError):
    """The accelerator broke a rule of AXI: a defect of the RTL, not of its use."""


class SimulatedBoard:
    """The accelerator in a compiled simulation. It comes out of reset, with zeros in memory.

    Pages of the memory cost nothing until they are touched. Not for use by several threads at a time.

    Parameters:
        library: what :func:`sim.build.build` returned.
        arch: the sizes the library was built for.
        board: clock and memory.

    Raises:
        SetupError: the library cannot be loaded, or there is no address space for the memory.
    """

    def __init__(self, library: Path, arch: Arch, board: Board):
        self.arch = arch
        self.board = board
        self._handle: int | None = None
        try:
            self._library = _load(library)
        except OSError as error:
            raise SetupError(
                f"{library}: expected a simulator of this machine, got: {error}; delete the file"
            ) from None
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            pages = mmap.mmap(-1, board.memory.size_bytes, flags=flags)
        except OSError as error:
            raise SetupError(
                f"expected address space for the {board.memory.size_mib} MiB memory of {board.name}, "
                f"got: {error.strerror}; choose a smaller board"
            ) from None
        self._memory = np.frombuffer(pages, np.uint8)
        parameters = dram.parameters(board)
        self._handle = self._library.board_create(self._memory.ctypes.data, self._memory.size, ctypes.byref(parameters))

    @property
    def memory_bytes(self) -> int:
        """Size of the device memory; addresses start at 0."""
        return self._memory.size

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The device memory itself, not a copy."""
        return self._memory

    def read(self, address: int, size: int) -> NDArray[np.uint8]:
        """Copy of ``size`` bytes of device memory, uint8 ``[size]``.

        Raises:
            DeviceError: they are not all within the memory.
        """
        self.board.memory.check_range(address, size)
        return np.array(self._memory[address : address + size])

    def write(self, address: int, values: ArrayLike) -> None:
        """Copy the bytes of ``values``, an array of any type and shape, to device memory.

        Raises:
            DeviceError: they do not all fit within the memory.
        """
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.board.memory.check_range(address, flat.size)
        self._memory[address : address + flat.size] = flat

    def csr_read(self, offset: int) -> int:
        """The register at byte ``offset``.

        Raises:
            DeviceTimeout: the accelerator did not answer.
            DeviceError: it answered an error.
        """
        value = ctypes.c_uint32()
        self._answer(self._library.board_csr_read(self._open(), offset, ctypes.byref(value)), "read", offset)
        return value.value

    def csr_write(self, offset: int, value: int) -> None:
        """Write the register at byte ``offset``; ``value`` is taken modulo 2^32.

        Raises:
            DeviceTimeout: the accelerator did not answer.
            DeviceError: it answered an error.
        """
        self._answer(self._library.board_csr_write(self._open(), offset, value & 0xFFFFFFFF), "write", offset)

    def run(self, max_cycles: int) -> int:
        """Let time pass until no command is pending, at least one cycle. Ctrl-C works.

        Returns:
            The cycles that passed; the accelerator may still be busy if they are ``max_cycles``.

        Raises:
            ProtocolViolation: the accelerator broke a rule of AXI.
        """
        handle = self._open()
        passed = 0
        while passed < max_cycles:
            passed += self._library.board_run(handle, min(_SLICE, max_cycles - passed))
            violation = self._library.board_violation(handle)
            if violation is not None:
                raise ProtocolViolation(f"AXI, cycle {self.cycles}: {violation.decode()}")
            if not self.busy:
                break
        return passed

    @property
    def busy(self) -> bool:
        """Whether commands are pending."""
        return bool(self._library.board_busy(self._open()))

    @property
    def cycles(self) -> int:
        """Fabric cycles since the board was made; a reset does not clear them."""
        return self._statistics()[0]

    @property
    def read_words(self) -> int:
        """Bus words that the accelerator read."""
        return self._statistics()[1]

    @property
    def write_words(self) -> int:
        """Bus words that the accelerator wrote."""
        return self._statistics()[2]

    def reset(self, cycles: int = 2) -> None:
        """Reset the accelerator and drop what is in flight; memory keeps its contents."""
        self._library.board_reset(self._open(), cycles)

    def add_fault(self, kind: str, address: int, size: int) -> None:
        """Answer every ``kind`` of access (``"read"``, ``"write"``) to these bytes with SLVERR.

        Words of such a read hold 0xA5 bytes, and a burst of such a write is not stored.
        """
        if kind not in ("read", "write"):
            raise ValueError(f"kind: expected read or write, got {kind!r}")
        self._library.board_add_fault(self._open(), kind == "write", address, address + size)

    def clear_faults(self) -> None:
        """Answer all accesses again."""
        self._library.board_clear_faults(self._open())

    def set_stall(self, seed: int, probability: float) -> None:
        """Hold back each side of every bus channel in a random ``probability`` of the cycles; 0 ends it."""
        self._library.board_set_stall(self._open(), seed & (1 << 64) - 1, probability)

    def set_dead(self, dead: bool = True) -> None:
        """Let the memory accept and answer nothing any more."""
        self._library.board_set_dead(self._open(), dead)

    def close(self) -> None:
        """Free the simulation. Closing twice is fine."""
        if self._handle is not None:
            self._library.board_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> SimulatedBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> int:
        if self._handle is None:
            raise DeviceError("expected an open simulated board, got one that is closed")
        return self._handle

    def _statistics(self) -> list[int]:
        values = (ctypes.c_uint64 * 3)()
        self._library.board_statistics(self._open(), values)
        return list(values)

    def _answer(self, answer: int, access: str, offset: int) -> None:
        if answer == _TIMEOUT:
            raise DeviceTimeout(f"CSR {access} at {offset:#x}: expected an answer, got none; reset the device")
        if answer != 0:
            raise DeviceError(f"CSR {access} at {offset:#x}: expected OKAY, got {_RESPONSES.get(answer, answer)}")


def _load(path: Path) -> ctypes.CDLL:
    pointer, flag, text = ctypes.c_void_p, ctypes.c_bool, ctypes.c_char_p
    u32, u64, status = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int
    signatures = {
        "board_create": (pointer, [pointer, u64, ctypes.POINTER(dram.Parameters)]),
        "board_destroy": (None, [pointer]),
        "board_reset": (None, [pointer, u32]),
        "board_csr_write": (status, [pointer, u32, u32]),
        "board_csr_read": (status, [pointer, u32, ctypes.POINTER(u32)]),
        "board_run": (u64, [pointer, u64]),
        "board_busy": (flag, [pointer]),
        "board_violation": (text, [pointer]),
        "board_statistics": (None, [pointer, ctypes.POINTER(u64)]),
        "board_add_fault": (None, [pointer, flag, u64, u64]),
        "board_clear_faults": (None, [pointer]),
        "board_set_dead": (None, [pointer, flag]),
        "board_set_stall": (None, [pointer, u64, ctypes.c_double]),
    }
    return native.load(path, signatures)
