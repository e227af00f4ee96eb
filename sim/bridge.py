"""The host bridge alone at a simulated serial line, with the board's memory and registers behind it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from amaranth.hdl import Cat, Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from boards import Board
from moe_hw.arch import Arch
from moe_hw.registers import DEVICE_MAGIC, LAYOUT_VERSION
from rtl_gen.bridge import Bridge
from rtl_gen.bus import AXI4
from rtl_gen.emit import to_verilog
from rtl_gen.registers import Registers
from sim import dram, native
from sim.build import BRIDGE_TOP, Progress, build_bridge
from sim.serial import LINE_FUNCTIONS, CompiledLine


class BridgeBoard(wiring.Component):
    """A bridge with registers in place of the accelerator, which complete each command after a while.

    Parameters
    ----------
    arch, clock_hz, baud
        As of ``Bridge``.

    Members
    -------
    rx : In(1), tx : Out(1), m_axi : Out(AXI4(arch))
        As of ``Bridge``.
    """

    COMMAND_CYCLES = 1000
    """Cycles from a doorbell to the completion."""

    def __init__(self, arch: Arch, clock_hz: int, baud: int):
        self.arch = arch
        self._bridge = Bridge(arch, clock_hz, baud)
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "m_axi": Out(AXI4(arch))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.bridge = bridge = self._bridge
        registers = Registers()
        m.submodules.registers = ResetInserter(bridge.reset)(registers)
        connect(m, bridge.m_axil, registers.bus)
        connect(m, bridge.m_axi, flipped(self.m_axi))
        timer = Signal(range(self.COMMAND_CYCLES + 1))
        m.d.comb += [
            bridge.rx.eq(self.rx),
            self.tx.eq(bridge.tx),
            registers.magic.eq(DEVICE_MAGIC),
            registers.version.eq(LAYOUT_VERSION),
            Cat(registers.config_hash_low, registers.config_hash_high).eq(self.arch.hash),
        ]
        with m.If(bridge.reset):
            m.d.sync += [registers.head.eq(0), timer.eq(0)]
        with m.Elif(registers.head == registers.tail):
            m.d.sync += timer.eq(0)
        with m.Else():
            m.d.sync += timer.eq(timer + 1)
            with m.If(timer == self.COMMAND_CYCLES):
                m.d.sync += [registers.head.eq(registers.head + 1), timer.eq(0)]
        return m


class SimulatedBridge(CompiledLine):
    """A :class:`BridgeBoard` with the board's memory in a compiled simulation, at the pins of its serial line.

    Parameters:
        board: clock and memory.
        arch: sizes of the accelerator that the registers claim to be.
        baud: of the line, at either end.
        drift: share by which this end is faster than the bridge's.
        progress: told what takes long.

    Attributes:
        memory: the device memory itself, uint8.

    Raises:
        SetupError: the simulator could not be built.
    """

    def __init__(
        self, board: Board, arch: Arch, baud: int, drift: float = 0.0, progress: Progress | None = None
    ):
        clock_hz = round(board.clock_mhz * 1e6)
        library = _load(build_bridge(to_verilog(BridgeBoard(arch, clock_hz, baud), BRIDGE_TOP), progress))
        self.memory = np.zeros(board.memory.size_bytes, np.uint8)
        parameters = dram.parameters(board)
        handle = library.bridge_create(
            self.memory.ctypes.data, self.memory.size, ctypes.byref(parameters), clock_hz / baud / (1 + drift)
        )
        super().__init__(library, handle)

    def add_fault(self, kind: str, address: int, size: int) -> None:
        """Answer every ``kind`` of access (``"read"``, ``"write"``) to these bytes with SLVERR."""
        self._library.bridge_add_fault(self._handle, kind == "write", address, address + size)

    def clear_faults(self) -> None:
        """Answer all accesses again."""
        self._library.bridge_clear_faults(self._handle)

    def set_stall(self, seed: int, probability: float) -> None:
        """Hold back the memory in a random ``probability`` of the cycles."""
        self._library.bridge_set_stall(self._handle, seed & (1 << 64) - 1, probability)

    def set_dead(self, dead: bool = True) -> None:
        """Let the memory accept and answer nothing any more."""
        self._library.bridge_set_dead(self._handle, dead)


def _load(path: Path) -> ctypes.CDLL:
    pointer, flag, u64 = ctypes.c_void_p, ctypes.c_bool, ctypes.c_uint64
    signatures = {
        **LINE_FUNCTIONS,
        "bridge_create": (pointer, [pointer, u64, ctypes.POINTER(dram.Parameters), ctypes.c_double]),
        "bridge_add_fault": (None, [pointer, flag, u64, u64]),
        "bridge_clear_faults": (None, [pointer]),
        "bridge_set_dead": (None, [pointer, flag]),
        "bridge_set_stall": (None, [pointer, u64, ctypes.c_double]),
    }
    return native.load(path, signatures)
