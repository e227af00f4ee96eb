"""The board's DDR3 as an AXI4 slave: front end, clock crossing and LiteDRAM's controller, all but its PHY."""

from __future__ import annotations

from amaranth.hdl import ClockSignal, DomainRenamer, Instance, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from boards import Board
from moe_hw.arch import Arch
from moe_hw.ddr3 import REGISTERS_ADDR_BITS
from rtl_gen.bus import AXI4, AXI4Lite
from rtl_gen.dfi import Dfi, PhyInterface, RegisterBus
from rtl_gen.emit import connections
from rtl_gen.litedram_core import CONTROLLER_MODULE, clock_mhz
from rtl_gen.native_master import NativeMaster, NativePort
from rtl_gen.register_crossing import RegisterCrossing
from rtl_gen.sdram_front import SdramFront

DOMAIN = "dram"
"""The clock domain of the controller: half of the chip's clock."""


class Ddr3(wiring.Component):
    """An AXI4 slave in the domain ``sync`` with the controller in the domain ``dram``.

    The clocks may have any phase; the fabric's is at least half as fast as the controller's, so that it takes words as
    fast as they come. Both domains are reset together. Until the host has initialised the chip through ``registers``,
    what is read means nothing and what is written is lost.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator, for the bus: a burst of the chip wide.
    board : Board
        Its memory is one DDR3 chip of 16 bits.

    Members
    -------
    axi : In(AXI4(arch))
        INCR bursts of whole words of any length, see :class:`rtl_gen.sdram_axi.SdramAxi`.
    registers : In(AXI4Lite(REGISTERS_ADDR_BITS))
        Those of ``moe_hw.ddr3``, of controller and PHY.
    pins : Out(PhyInterface(memory))
        In the domain ``dram``, for the PHY.
    """

    def __init__(self, arch: Arch, board: Board):
        memory = board.memory
        if memory.type != "ddr3" or memory.data_bits != 16 or memory.channels != 1:
            raise ValueError(
                f"memory: expected one channel of DDR3 with 16 bits, got {memory.channels} of {memory.type} "
                f"with {memory.data_bits}"
            )
        if arch.data_bits != 8 * memory.burst_bytes:
            raise ValueError(
                f"data_bits: expected {8 * memory.burst_bytes}, a burst of the memory, got {arch.data_bits}"
            )
        slowest = clock_mhz(memory) / 2
        if board.clock_mhz < slowest:
            raise ValueError(
                f"clock_mhz: expected at least {slowest:g}, half of the controller's, got {board.clock_mhz:g}"
            )
        self.arch = arch
        self.memory = memory
        super().__init__(
            {
                "axi": In(AXI4(arch)),
                "registers": In(AXI4Lite(REGISTERS_ADDR_BITS)),
                "pins": Out(PhyInterface(memory)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.front = front = SdramFront(self.arch, self.memory, DOMAIN)
        master = NativeMaster(self.memory)
        m.submodules.master = DomainRenamer(DOMAIN)(master)
        m.submodules.crossing = crossing = RegisterCrossing(DOMAIN)
        connect(m, flipped(self.axi), front.axi)
        connect(m, front.segments, master.segments)
        connect(m, front.writes, master.writes)
        connect(m, flipped(self.registers), crossing.axil)
        m.d.comb += [front.words.eq(master.words), front.word_valid.eq(master.word_valid)]

        port = NativePort(self.memory).flip().create(path=("port",))
        csr = RegisterBus().flip().create(path=("csr",))
        connect(m, master.port, port)
        m.submodules.controller = Instance(
            CONTROLLER_MODULE,
            i_sys_clk=ClockSignal(DOMAIN),
            i_sys_rst=ResetSignal(DOMAIN),
            **connections(NativePort(self.memory).flip(), port, ""),
            **connections(Dfi(self.memory), self.pins.dfi, "dfi_"),
            **connections(RegisterBus().flip(), csr, "csr_"),
        )
        # Both are on one bus: who is not addressed answers with zeros.
        for registers in (csr, self.pins.csr):
            for name in ("adr", "re", "we", "dat_w"):
                m.d.comb += getattr(registers, name).eq(getattr(crossing.bus, name))
        m.d.comb += crossing.bus.dat_r.eq(csr.dat_r | self.pins.csr.dat_r)
        return m
