"""Resets the accelerator alone: what it has under way at the memory comes to its end without it."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import Arch
from rtl_gen.axi_arbiter import MAX_BURSTS, REQUEST
from rtl_gen.bus import AXI4, AXI4Lite
from rtl_gen.registers import CSR_ADDR_BITS

COUNT = range(2 * MAX_BURSTS)
"""Bursts under way: the arbiter takes ``MAX_BURSTS`` and has one more on its way."""


class ResetGuard(wiring.Component):
    """Stands between the accelerator and the rest, and holds it in reset until nothing of it is under way.

    Meanwhile it takes the words of the accelerator's reads, sends what is left of a write without bytes, and keeps the
    CSR accesses of the host waiting. A request that the arbiter has not taken is withdrawn: it has not seen it.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    ask : In(1)
        The accelerator is to be reset.
    reset : Out(1)
        Of the accelerator: with that of the domain; from the cycle after ``ask`` on, until all its bursts are done.
    csr_master : In(AXI4Lite(CSR_ADDR_BITS)), csr_slave : Out(AXI4Lite(CSR_ADDR_BITS))
        From the host, to the accelerator.
    master : In(AXI4(arch)), slave : Out(AXI4(arch))
        From the accelerator, to the arbiter. The words of a write follow its address.

    Latency: none; throughput: a word a cycle, less a cycle between the last word of a write and the next address.
    """

    def __init__(self, arch: Arch):
        csrs = AXI4Lite(CSR_ADDR_BITS)
        super().__init__(
            {
                "ask": In(1),
                "reset": Out(1, init=1),
                "csr_master": In(csrs),
                "csr_slave": Out(csrs),
                "master": In(AXI4(arch)),
                "slave": Out(AXI4(arch)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        master, slave = self.master, self.slave
        reads, answers = Signal(COUNT), Signal(COUNT)
        words = Signal(9)  # of the write under way
        runs = Signal()
        m.d.comb += runs.eq(~self.reset)

        for name, member in AXI4Lite(CSR_ADDR_BITS).members.items():
            ends = (self.csr_master, self.csr_slave) if member.flow is Out else (self.csr_slave, self.csr_master)
            source, sink = (getattr(end, name) for end in ends)
            gated = name in ("awvalid", "wvalid", "arvalid", "awready", "wready", "arready")
            m.d.comb += sink.eq(source & runs if gated else source)

        for name in REQUEST:
            for channel in ("ar", "aw"):
                m.d.comb += getattr(slave, f"{channel}{name}").eq(getattr(master, f"{channel}{name}"))
        between = words == 0
        m.d.comb += [
            slave.arvalid.eq(master.arvalid & runs),
            master.arready.eq(slave.arready & runs),
            master.rvalid.eq(slave.rvalid & runs),
            master.rdata.eq(slave.rdata),
            master.rresp.eq(slave.rresp),
            master.rlast.eq(slave.rlast),
            slave.rready.eq(master.rready | self.reset),
            slave.awvalid.eq(master.awvalid & runs & between),
            master.awready.eq(slave.awready & runs & between),
            slave.wvalid.eq((master.wvalid | self.reset) & ~between),
            master.wready.eq(slave.wready & runs & ~between),
            slave.wdata.eq(master.wdata),
            slave.wstrb.eq(master.wstrb & runs.replicate(len(master.wstrb))),
            slave.wlast.eq(words == 1),
            master.bvalid.eq(slave.bvalid & runs),
            master.bresp.eq(slave.bresp),
            slave.bready.eq(master.bready | self.reset),
        ]

        asked_write = slave.awvalid & slave.awready
        with m.If(asked_write):
            m.d.sync += words.eq(slave.awlen + 1)
        with m.Elif(slave.wvalid & slave.wready):
            m.d.sync += words.eq(words - 1)
        m.d.sync += [
            reads.eq(reads + (slave.arvalid & slave.arready) - (slave.rvalid & slave.rready & slave.rlast)),
            answers.eq(answers + asked_write - (slave.bvalid & slave.bready)),
        ]
        with m.If(self.ask):
            m.d.sync += self.reset.eq(1)
        with m.Elif((reads == 0) & (answers == 0)):
            m.d.sync += self.reset.eq(0)
        return m
