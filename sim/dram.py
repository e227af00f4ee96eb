"""The DRAM timing model alone: its parameters from a board, and the yardstick of a perfect reader."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from boards import Board, Timing
from moe_hw.arch import INTERLEAVE
from sim import build, native
from sim.clocks import period_fs

_TIMINGS = tuple(field.name for field in dataclasses.fields(Timing))
_GEOMETRY = ("burst_bytes", "row_bytes", "banks", "bank_groups", "channels")
_STRETCH = 1 << 24
"""Bytes whose times of arrival are in this machine's memory at once; a multiple of every burst."""


class Parameters(ctypes.Structure):
    """``DramParameters`` of ``dram.h``: times in femtoseconds, sizes in bytes."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("cycle", "burst", "controller", *_TIMINGS, *_GEOMETRY, "interleave")
    ]


def parameters(board: Board) -> Parameters:
    """The model's parameters for a board; timings are rounded up to whole memory clocks, as a controller has to."""
    memory = board.memory

    def whole_clocks(nanoseconds: float) -> int:
        return round(memory.clocks(nanoseconds) * memory.clock_ns * 1e6)

    times = {name: whole_clocks(getattr(memory.timing, name)) for name in _TIMINGS if name != "tREFI"}
    return Parameters(
        cycle=period_fs(board.clock_mhz),
        burst=period_fs(memory.mt_per_s / memory.burst_length),
        controller=round(memory.controller_ns * 1e6),
        tREFI=round(memory.timing.tREFI * 1e6),
        **times,
        **{name: getattr(memory, name) for name in _GEOMETRY},
        interleave=INTERLEAVE,
    )


@functools.cache
def _library() -> ctypes.CDLL:
    pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    signatures = {
        "dram_create": (pointer, [ctypes.POINTER(Parameters)]),
        "dram_destroy": (None, [pointer]),
        "dram_reset": (None, [pointer, u64]),
        "dram_read": (None, [pointer, u64, u32, u32, u64, pointer]),
        "dram_write": (u64, [pointer, u64, u64, u64]),
    }
    return native.load(build.build_dram(), signatures)


class Dram:
    """The timing model on its own, without data. Accesses are served in the order of the calls.

    Parameters:
        parameters: of the memory and of the fabric clock.

    Raises:
        SetupError: the model cannot be compiled.
    """

    def __init__(self, parameters: Parameters):
        self._library = _library()
        self._handle: int | None = self._library.dram_create(ctypes.byref(parameters))

    def read(self, address: int, words: int, word_bytes: int, now: int) -> NDArray[np.uint64]:
        """Fabric cycles in which each of ``words`` bus words arrives that are asked for in cycle ``now``."""
        arrival = np.empty(words, np.uint64)
        self._library.dram_read(self._handle, address, words, word_bytes, now, arrival.ctypes.data)
        return arrival

    def write(self, address: int, size: int, now: int) -> int:
        """Fabric cycle in which ``size`` bytes are in memory that the controller got in cycle ``now``."""
        return int(self._library.dram_write(self._handle, address, size, now))

    def reset(self, cycle: int = 0) -> None:
        """Close all rows; refreshes count from ``cycle``."""
        self._library.dram_reset(self._handle, cycle)

    def close(self) -> None:
        """Free the model. Closing twice is fine."""
        if self._handle is not None:
            self._library.dram_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> Dram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ideal_reader(board: Board, size: int) -> int:
    """Fabric cycles that the memory needs for ``size`` sequential bytes, all asked for at once.

    This is the memory's own limit, refresh and first latency included; the width of the accelerator's bus is not.
    """
    burst = board.memory.burst_bytes
    end = 0
    with Dram(parameters(board)) as dram:
        for address in range(0, size, _STRETCH):
            words = -(-min(_STRETCH, size - address) // burst)
            end = max(end, int(dram.read(address, words, burst, 0)[-1]))
    return end
