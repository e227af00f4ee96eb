"""A whole board with DDR3, a serial port and Ethernet, simulated up to DFI and to the bytes of the Ethernet PHY."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from boards import Board
from moe_hw.arch import Arch
from rtl_gen.datagrams import DOMAIN as NETWORK
from rtl_gen.datagrams import MHZ as NETWORK_MHZ
from rtl_gen.datagrams import PHY_DOMAIN as ETHERNET
from rtl_gen.datagrams import PHY_MHZ as ETHERNET_MHZ
from rtl_gen.datagrams import PhyBytes
from rtl_gen.ddr3 import DOMAIN
from rtl_gen.dfi import Dfi, RegisterBus
from rtl_gen.emit import to_verilog
from rtl_gen.litedram_core import clock_mhz, controller_verilog, latencies
from rtl_gen.liteeth_core import core_verilog
from rtl_gen.serial_board import SerialBoard
from sim import ddr3_chip, native
from sim.build import DDR3_BOARD_TOP, Progress, build_ddr3_board
from sim.clocks import clock_domains, period_fs
from sim.serial import LINE_FUNCTIONS, CompiledLine


class Latency(ctypes.Structure):
    """``DfiLatency`` of ``ddr3_phy.h``."""

    _fields_ = [("read", ctypes.c_int64), ("write", ctypes.c_int64)]


class Lane(ctypes.Structure):
    """``Ddr3Lane`` of ``ddr3_phy.h``: what read levelling has to find."""

    _fields_ = [("bitslip", ctypes.c_int64), ("first", ctypes.c_int64), ("last", ctypes.c_int64)]


LANES = (Lane(2, 1, 4), Lane(1, 3, 6))
"""Of the simulated board, one different from the other and from what a reset leaves."""


DOMAINS = (DOMAIN, NETWORK, ETHERNET)
"""All clock domains but the fabric's."""

_NETWORK_ROOM = 1 << 16
"""Bytes of frames that are taken at a time."""


class DfiBoard(wiring.Component):
    """The contents of the FPGA up to DFI: all but the PLL and the PHY.

    Parameters
    ----------
    board, arch, baud
        As of ``SerialBoard``.

    Members
    -------
    clk, rst, dram_clk, dram_rst, network_clk, network_rst, ethernet_clk, ethernet_rst : In(1)
        The clocks, and the resets of their domains.
    rx_valid, rx_data, … : as of ``PhyBytes``
    rx : In(1), tx : Out(1), busy : Out(1)
        As of ``SerialBoard``.
    p0_address, p0_bank, … : as of ``Dfi``
    csr_adr, csr_we, … : as of ``RegisterBus``
    """

    def __init__(self, board: Board, arch: Arch, baud: int):
        self._fpga = SerialBoard(board, arch, baud)
        self._csr = RegisterBus().members
        self._dfi = Dfi(board.memory).members
        self._ethernet = PhyBytes().members
        prefixes = ("", *(f"{domain}_" for domain in DOMAINS))
        clocks = {f"{prefix}{name}": In(1) for prefix in prefixes for name in ("clk", "rst")}
        line = {"rx": In(1, init=1), "tx": Out(1, init=1), "busy": Out(1)}
        csr = {f"csr_{name}": self._csr[name] for name in self._csr}
        super().__init__({**clocks, **line, **self._dfi, **self._ethernet, **csr})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        others = {domain: (getattr(self, f"{domain}_clk"), getattr(self, f"{domain}_rst")) for domain in DOMAINS}
        clock_domains(m, {"sync": (self.clk, self.rst), **others})
        m.submodules.fpga = fpga = self._fpga
        m.d.comb += [fpga.rx.eq(self.rx), self.tx.eq(fpga.tx), self.busy.eq(fpga.busy)]
        for prefix, members, pins in (
            ("", self._dfi, fpga.pins.dfi), ("csr_", self._csr, fpga.pins.csr), ("", self._ethernet, fpga.ethernet)
        ):  # fmt: skip
            for name, member in members.items():
                outer, inner = getattr(self, f"{prefix}{name}"), getattr(pins, name)
                m.d.comb += outer.eq(inner) if member.flow is Out else inner.eq(outer)
        return m


class SimulatedDdr3Board(CompiledLine):
    """The board in a compiled simulation. It comes out of reset, with a chip that is not initialised.

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
        fpga = to_verilog(DfiBoard(board, arch, baud), DDR3_BOARD_TOP)
        cores = controller_verilog(board.memory), core_verilog(board.ethernet)
        library = _load(build_ddr3_board("\n".join((fpga, accelerator, *cores)), progress))
        chip = np.zeros(board.memory.size_bytes // 2, np.uint16)
        self.memory = chip.view(np.uint8)
        handle = library.ddr3_board_create(
            chip.ctypes.data,
            ctypes.byref(ddr3_chip.parameters(board.memory)),
            ctypes.byref(Latency(*latencies(board.memory))),
            (Lane * len(LANES))(*LANES),
            period_fs(board.clock_mhz),
            period_fs(clock_mhz(board.memory)),
            period_fs(NETWORK_MHZ),
            period_fs(ETHERNET_MHZ),
            board.clock_mhz * 1e6 / baud,
        )
        super().__init__(library, handle)

    def run_network(self, cycles: int, sent: Sequence[bytes]) -> list[bytes]:
        """As of :class:`sim.network.NetworkDevice`."""
        data = b"".join(len(frame).to_bytes(2, "little") + frame for frame in sent)
        room = ctypes.create_string_buffer(_NETWORK_ROOM)
        count = self._library.ddr3_board_network_run(self._handle, cycles, data, len(data), room, _NETWORK_ROOM)
        frames, came = [], io.BytesIO(room[:count])
        while length := came.read(2):
            frames.append(came.read(int.from_bytes(length, "little")))
        return frames

    @property
    def network_quiet(self) -> int:
        """As of :class:`sim.network.NetworkDevice`."""
        return self._library.ddr3_board_network_quiet(self._handle)

    @property
    def busy_reads(self) -> tuple[int, int]:
        """Bursts of the chip that were read, and clocks of its controller, while the accelerator had commands."""
        library = self._library
        return library.ddr3_board_busy_bursts(self._handle), library.ddr3_board_busy_clocks(self._handle)


def _load(path: Path) -> ctypes.CDLL:
    pointer, i64, u64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
    signatures = {
        **LINE_FUNCTIONS,
        "ddr3_board_create": (
            pointer,
            [pointer, ctypes.POINTER(ddr3_chip.Parameters), ctypes.POINTER(Latency), ctypes.POINTER(Lane),
             i64, i64, i64, i64, ctypes.c_double],
        ),
        "ddr3_board_busy_bursts": (u64, [pointer]),
        "ddr3_board_busy_clocks": (u64, [pointer]),
        "ddr3_board_network_quiet": (u64, [pointer]),
        "ddr3_board_network_run": (u64, [pointer, u64, ctypes.c_char_p, u64, ctypes.c_char_p, u64]),
    }  # fmt: skip
    return native.load(path, signatures)
