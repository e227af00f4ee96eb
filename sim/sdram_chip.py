"""The SDRAM chip at its pins, for benches: data, and a check of every rule that its controller has to keep."""

from __future__ import annotations

import ctypes
import functools
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from boards import Memory
from rtl_gen.sdram_timing import MODE_CLOCKS, POWER_UP_NS, POWER_UP_REFRESHES
from sim import build, native

_TIMES = ("CL", "tRCD", "tRP", "tRAS", "tRC", "tRRD", "tWR", "tRFC", "tMRD")
_REFRESHED_ROWS = 8192
"""In the time that ``tREFI`` is derived from, 64 ms."""


class Parameters(ctypes.Structure):
    """``SdramParameters`` of ``sdram_chip.h``: times in clocks."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (*_TIMES, "power_up", "power_up_refreshes", "refresh_window", "banks", "rows", "columns")
    ]


def parameters(memory: Memory) -> Parameters:
    """The chip of a board with one SDR SDRAM; its times are rounded up to whole clocks."""
    times = memory.timing
    rows = memory.size_bytes // (memory.banks * memory.row_bytes)
    return Parameters(
        **{name: memory.clocks(getattr(times, name)) for name in _TIMES if name not in ("tRRD", "tMRD")},
        tRRD=memory.clocks(times.tRRD_L),
        tMRD=MODE_CLOCKS,
        power_up=memory.clocks(POWER_UP_NS),
        power_up_refreshes=POWER_UP_REFRESHES,
        refresh_window=int(_REFRESHED_ROWS * times.tREFI / memory.clock_ns),
        banks=memory.banks,
        rows=rows,
        columns=memory.row_bytes * 8 // memory.data_bits,
    )


@functools.cache
def _library() -> ctypes.CDLL:
    pointer, u32, i32 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int32
    signatures = {
        "sdram_create": (pointer, [ctypes.POINTER(Parameters), pointer]),
        "sdram_destroy": (None, [pointer]),
        "sdram_reset": (None, [pointer]),
        "sdram_clock": (i32, [pointer, *[u32] * 8, i32]),
        "sdram_violation": (ctypes.c_char_p, [pointer]),
    }
    return native.load(build.build_sdram_chip(), signatures)


class SdramChip:
    """One chip of 16 bits.

    Parameters:
        parameters: of the chip at its clock.

    Attributes:
        memory: what it holds: words of 16 bits, the columns of a row together, then the banks.

    Raises:
        SetupError: the model cannot be compiled.
    """

    def __init__(self, parameters: Parameters):
        self._library = _library()
        self.memory: NDArray[np.uint16] = np.zeros(
            parameters.rows * parameters.banks * parameters.columns, dtype=np.uint16
        )
        self._handle: int | None = self._library.sdram_create(
            ctypes.byref(parameters), self.memory.ctypes.data_as(ctypes.c_void_p)
        )

    def clock(
        self, clk_en: int, cs_n: int, ras_n: int, cas_n: int, we_n: int, ba: int, a: int, dqm: int, dq: int | None
    ) -> int | None:
        """One rising edge, with the pins as they are at it; ``dq`` is None if the controller does not drive it.

        Returns:
            The word that the chip drives from here to the next edge, or None.

        Raises:
            AssertionError: a rule is broken, now or before; the message names it, the command and the cycles.
        """
        shown = self._library.sdram_clock(
            self._handle, clk_en, cs_n, ras_n, cas_n, we_n, ba, a, dqm, -1 if dq is None else dq
        )
        violation = self._library.sdram_violation(self._handle)
        if violation:
            raise AssertionError(violation.decode())
        return None if shown < 0 else int(shown)

    def reset(self) -> None:
        """Switch power off and on again; the memory keeps what it holds, so that a test can go on."""
        self._library.sdram_reset(self._handle)

    def close(self) -> None:
        """Free the model. Closing twice is fine."""
        if self._handle is not None:
            self._library.sdram_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> SdramChip:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
