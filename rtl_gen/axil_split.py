"""One AXI4-Lite master at two slaves: the accelerator's CSRs and the memory's registers."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moe_hw.ddr3 import REGISTERS_ADDR_BITS
from rtl_gen.bus import AXI4Lite
from rtl_gen.registers import CSR_ADDR_BITS, HOST_ADDR_BITS


class AxilSplit(wiring.Component):
    """Accesses go where their highest address bit says; the master waits for an answer before its next access.

    Members
    -------
    master : In(AXI4Lite(HOST_ADDR_BITS))
        From the host. Its addresses stay until the answer.
    csrs : Out(AXI4Lite(CSR_ADDR_BITS)), registers : Out(AXI4Lite(REGISTERS_ADDR_BITS))
        To the accelerator and, with the highest bit set, to the memory.

    Latency: none.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "master": In(AXI4Lite(HOST_ADDR_BITS)),
                "csrs": Out(AXI4Lite(CSR_ADDR_BITS)),
                "registers": Out(AXI4Lite(REGISTERS_ADDR_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        master = self.master
        for number, slave in enumerate((self.csrs, self.registers)):
            writes, reads = Signal(name=f"writes_{number}"), Signal(name=f"reads_{number}")
            m.d.comb += [writes.eq(master.awaddr[-1] == number), reads.eq(master.araddr[-1] == number)]
            for name in ("awaddr", "wdata", "wstrb", "araddr", "bready", "rready"):
                m.d.comb += getattr(slave, name).eq(getattr(master, name))
            m.d.comb += [
                slave.awvalid.eq(master.awvalid & writes),
                slave.wvalid.eq(master.wvalid & writes),
                slave.arvalid.eq(master.arvalid & reads),
            ]
            with m.If(writes):
                m.d.comb += [getattr(master, name).eq(getattr(slave, name)) for name in ("awready", "wready")]
                m.d.comb += [getattr(master, name).eq(getattr(slave, name)) for name in ("bresp", "bvalid")]
            with m.If(reads):
                m.d.comb += [
                    getattr(master, name).eq(getattr(slave, name)) for name in ("arready", "rdata", "rresp", "rvalid")
                ]
        return m
