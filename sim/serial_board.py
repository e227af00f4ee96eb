"""A whole board with an SDRAM and a serial port, simulated at its pins: FPGA, memory chip and the line to the host."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from amaranth.hdl import DomainRenamer, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from boards import Board
from moe_hw.arch import Arch
from rtl_gen.emit import to_verilog
from rtl_gen.sdram import DOMAIN
from rtl_gen.sdram_pins import SdramPins
from rtl_gen.serial_board import SerialBoard
from sim import native, sdram_chip
from sim.build import SERIAL_BOARD_TOP, Progress, build_serial_board
from sim.clocks import clock_domains, period_fs
from sim.pads import SimulatedPads, pin_layout
from sim.serial import LINE_FUNCTIONS, CompiledLine


class PinBoard(wiring.Component):
    """The contents of the FPGA up to its pins, but for the PLL.

    Parameters
    ----------
    board, arch, baud
        As of ``SerialBoard``.

    Members
    -------
    clk, rst, sdram_clk, sdram_rst : In(1)
        Both clocks, and the resets of their domains.
    rx : In(1), tx : Out(1)
        The serial line.
    clk_en, cs, ras, cas, we, ba, a, dqm, dq_o, dq_oe : Out, dq_i : In
        The SDRAM, as of ``SimulatedPads``.
    """

    def __init__(self, board: Board, arch: Arch, baud: int):
        self.board = board
        self._fpga = SerialBoard(board, arch, baud)
        clocks = {name: In(1) for name in ("clk", "rst", "sdram_clk", "sdram_rst")}
        super().__init__({**clocks, "rx": In(1, init=1), "tx": Out(1, init=1), **SdramPins(board.memory).members})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        clock_domains(m, {"sync": (self.clk, self.rst), DOMAIN: (self.sdram_clk, self.sdram_rst)})
        m.submodules.fpga = fpga = self._fpga
        pads = SimulatedPads(self.board.memory)
        m.submodules.pads = DomainRenamer(DOMAIN)(pads)
        connect(m, fpga.pins, pads.pins)
        m.d.comb += [fpga.rx.eq(self.rx), self.tx.eq(fpga.tx), pads.dq_i.eq(self.dq_i)]
        outside = pin_layout(self.board.memory)
        m.d.comb += [getattr(self, name).eq(getattr(pads.pads, name)) for name, _ in outside]
        return m


class SimulatedSerialBoard(CompiledLine):
    """The board in a compiled simulation. It comes out of reset, with zeros in memory.

    Parameters:
        board: clock and memory.
        arch: sizes of the accelerator.
        accelerator: its Verilog.
        baud: of the line.
        progress: told what takes long.

    Attributes:
        memory: what the chip holds, uint8, in the order of the addresses.

    Raises:
        SetupError: the simulator could not be built.
    """

    def __init__(self, board: Board, arch: Arch, accelerator: str, baud: int, progress: Progress | None = None):
        verilog = f"{to_verilog(PinBoard(board, arch, baud), SERIAL_BOARD_TOP)}\n{accelerator}"
        library = _load(build_serial_board(verilog, progress))
        chip = np.zeros(board.memory.size_bytes // 2, np.uint16)
        self.memory = chip.view(np.uint8)
        handle = library.serial_board_create(
            chip.ctypes.data,
            ctypes.byref(sdram_chip.parameters(board.memory)),
            period_fs(board.clock_mhz),
            period_fs(board.memory.mt_per_s),
            board.clock_mhz * 1e6 / baud,
        )
        super().__init__(library, handle)


def _load(path: Path) -> ctypes.CDLL:
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    signatures = {
        **LINE_FUNCTIONS,
        "serial_board_create": (
            pointer, [pointer, ctypes.POINTER(sdram_chip.Parameters), i64, i64, ctypes.c_double]
        ),
    }  # fmt: skip
    return native.load(path, signatures)
