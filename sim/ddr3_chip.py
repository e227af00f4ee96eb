"""The DDR3 chip's model: its parameters from a board, and the chip alone for the tests of its rules."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math

from boards import Memory, Timing
from sim import build, native

MODE_CLOCKS = 4
"""From a mode register command to the next one, tMRD."""

LONG_CALIBRATION_CLOCKS, SHORT_CALIBRATION_CLOCKS = 512, 64
"""tZQinit and tZQCS."""

DLL_CLOCKS = 512
"""From a reset of the DLL to the first read or write, tDLLK."""

POWER_UP_NS = 500_000
"""Of clock enable low after power-up."""

_TIMES = (
    "CL", "CWL", "tRCD", "tRP", "tRAS", "tRC", "tRRD", "tFAW", "tCCD", "tRFC", "tREFI", "tWR", "tWTR", "tRTP", "tRTW"
)  # fmt: skip
_START = ("tMRD", "tMOD", "tXPR", "tZQinit", "tZQCS", "tDLLK", "power_up")


class Parameters(ctypes.Structure):
    """``Ddr3Parameters`` of ``ddr3_chip.h``: times in clocks of the chip."""

    _fields_ = [(name, ctypes.c_int64) for name in (*_TIMES, *_START, "banks", "rows", "columns")]


def parameters(memory: Memory) -> Parameters:
    """The chip of a board with one DDR3 chip; its times are rounded up to whole clocks."""
    times = memory.timing
    names = {field.name.removesuffix("_L"): field.name for field in dataclasses.fields(Timing)}
    clocks = {name: memory.clocks(getattr(times, names[name])) for name in _TIMES}
    clocks["tREFI"] = math.floor(times.tREFI / memory.clock_ns)
    return Parameters(
        **clocks,
        tMRD=MODE_CLOCKS,
        tMOD=max(12, memory.clocks(15)),
        tXPR=max(5, memory.clocks(times.tRFC + 10)),
        tZQinit=LONG_CALIBRATION_CLOCKS,
        tZQCS=SHORT_CALIBRATION_CLOCKS,
        tDLLK=DLL_CLOCKS,
        power_up=memory.clocks(POWER_UP_NS),
        banks=memory.banks,
        rows=memory.size_bytes // (memory.banks * memory.row_bytes),
        columns=memory.row_bytes * 8 // memory.data_bits,
    )


@functools.cache
def _library() -> ctypes.CDLL:
    pointer, u32 = ctypes.c_void_p, ctypes.c_uint32
    signatures = {
        "ddr3_create": (pointer, [ctypes.POINTER(Parameters)]),
        "ddr3_destroy": (None, [pointer]),
        "ddr3_clock": (ctypes.c_int64, [pointer, *[u32] * 7]),
        "ddr3_violation": (ctypes.c_char_p, [pointer]),
    }
    return native.load(build.build_ddr3_chip(), signatures)


@dataclasses.dataclass(frozen=True)
class Burst:
    """What a read or write command has begun: ``place`` counts transfers, the banks of a row together."""

    write: bool
    place: int


class Ddr3Chip:
    """One chip.

    Parameters:
        parameters: of the chip at its clock.

    Raises:
        SetupError: the model cannot be compiled.
    """

    def __init__(self, parameters: Parameters):
        self._library = _library()
        self._handle: int | None = self._library.ddr3_create(ctypes.byref(parameters))

    def clock(self, cke: int, cs_n: int, ras_n: int, cas_n: int, we_n: int, ba: int, a: int) -> Burst | None:
        """One rising edge, with the pins as they are at it.

        Raises:
            AssertionError: a rule is broken, now or before; the message names it, the command and the clocks.
        """
        code = self._library.ddr3_clock(self._handle, cke, cs_n, ras_n, cas_n, we_n, ba, a)
        violation = self._library.ddr3_violation(self._handle)
        if violation:
            raise AssertionError(violation.decode())
        return None if code < 0 else Burst(bool(code & 1), code >> 1)

    def close(self) -> None:
        """Free the model. Closing twice is fine."""
        if self._handle is not None:
            self._library.ddr3_destroy(self._handle)
            self._handle = None
