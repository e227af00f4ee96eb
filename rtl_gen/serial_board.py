"""A board with one memory chip and a serial port: accelerator, host bridge and memory, all but its pads and clocks.

It may have Ethernet, too."""

from __future__ import annotations

from amaranth.hdl import ClockSignal, DomainRenamer, Instance, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from boards import Board
from moe_hw.arch import Arch
from rtl_gen.accelerator import AcceleratorPorts
from rtl_gen.axi_arbiter import AxiArbiter
from rtl_gen.axil_split import AxilSplit
from rtl_gen.bridge import Bridge
from rtl_gen.crossing import Crossing
from rtl_gen.datagrams import DOMAIN, PHY_DOMAIN, Datagrams, PhyBytes, UdpPort
from rtl_gen.ddr3 import Ddr3
from rtl_gen.dfi import PhyInterface
from rtl_gen.emit import connections, instance
from rtl_gen.global_net import global_net
from rtl_gen.liteeth_core import CORE_MODULE
from rtl_gen.reset_guard import ResetGuard
from rtl_gen.sdram import Sdram
from rtl_gen.sdram_pins import SdramPins

ACCELERATOR = "moe_hw"
"""Module of the accelerator, which is not emitted with the board: it is what ``moe-hw generate`` wrote."""

CROSSING_BYTES = 8
"""Between bridge and network: enough for a byte in each clock of the slower side."""


class SerialBoard(wiring.Component):
    """What is the same in simulation and in the FPGA of such a board.

    The fabric's domain is ``sync``; the memory's controller is in ``rtl_gen.sdram.DOMAIN`` or ``rtl_gen.ddr3.DOMAIN``,
    and of a board in a network LiteEth's core in ``rtl_gen.datagrams.DOMAIN``. All are reset together, as
    :class:`rtl_gen.crossing.Crossing` asks.

    Parameters
    ----------
    board : Board
        Its clock and memory, SDR SDRAM or DDR3.
    arch : Arch
        Sizes of the accelerator.
    baud : int
        Bits per second of the serial line.

    Members
    -------
    rx : In(1), tx : Out(1)
        The serial line.
    pins : Out(SdramPins(board.memory)) or Out(PhyInterface(board.memory))
        The chip, but for the registers of its pads or the PHY.
    ethernet : Out(PhyBytes()), of boards with a place in the network
        The Ethernet PHY, in the domain ``rtl_gen.datagrams.PHY_DOMAIN``.
    busy : Out(1)
        The accelerator has commands.
    """

    def __init__(self, board: Board, arch: Arch, baud: int):
        self.board = board
        self.arch = arch
        self.baud = baud
        self.is_ddr3 = board.memory.type == "ddr3"
        pins = PhyInterface(board.memory) if self.is_ddr3 else SdramPins(board.memory)
        network = {} if board.ethernet is None else {"ethernet": Out(PhyBytes())}
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "pins": Out(pins), "busy": Out(1), **network})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        has_network = self.board.ethernet is not None
        clock_hz = round(self.board.clock_mhz * 1e6)
        m.submodules.bridge = bridge = Bridge(arch, clock_hz, self.baud, self.is_ddr3, has_network)
        m.submodules.guard = guard = ResetGuard(arch)
        m.submodules.arbiter = arbiter = AxiArbiter(arch)
        m.submodules.memory = memory = Ddr3(arch, self.board) if self.is_ddr3 else Sdram(arch, self.board)
        ports = AcceleratorPorts(arch)
        accelerator = ports.create(path=("accelerator",))
        reset = global_net(m, "accelerator_reset", guard.reset, platform)
        m.submodules.accelerator = instance(ACCELERATOR, ports, accelerator, reset)

        m.d.comb += [bridge.rx.eq(self.rx), self.tx.eq(bridge.tx), guard.ask.eq(bridge.reset)]
        if self.is_ddr3:
            m.submodules.split = split = AxilSplit()
            connect(m, bridge.m_axil, split.master)
            connect(m, split.csrs, guard.csr_master)
            connect(m, split.registers, memory.registers)
        else:
            connect(m, bridge.m_axil, guard.csr_master)
        connect(m, guard.csr_slave, accelerator.s_axil)
        connect(m, accelerator.m_axi, guard.master)
        connect(m, guard.slave, arbiter.master_0)
        connect(m, bridge.m_axi, arbiter.master_1)
        connect(m, arbiter.slave, memory.axi)
        connect(m, memory.pins, flipped(self.pins))
        m.d.comb += self.busy.eq(accelerator.busy)
        if has_network:
            self._network(m, bridge)
        return m

    def _network(self, m: Module, bridge: Bridge) -> None:
        datagrams = Datagrams()
        m.submodules.datagrams = DomainRenamer(DOMAIN)(datagrams)
        m.submodules.received = received = Crossing(8, CROSSING_BYTES, DOMAIN, "sync")
        m.submodules.sent = sent = Crossing(8, CROSSING_BYTES, "sync", DOMAIN)
        connect(m, datagrams.received, received.i)
        connect(m, received.o, bridge.received)
        connect(m, bridge.sent, sent.i)
        connect(m, sent.o, datagrams.sent)
        clocks = {f"i_eth_{side}_clk": ClockSignal(PHY_DOMAIN) for side in ("rx", "tx")}
        resets = {f"i_eth_{side}_rst": ResetSignal(PHY_DOMAIN) for side in ("rx", "tx")}
        m.submodules.ethernet_core = Instance(
            CORE_MODULE,
            i_sys_clk=ClockSignal(DOMAIN),
            i_sys_rst=ResetSignal(DOMAIN),
            **clocks,
            **resets,
            **connections(PhyBytes(), self.ethernet, "phy_"),
            **connections(UdpPort(), datagrams.udp, ""),
        )
