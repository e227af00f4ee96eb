"""AXI4-Lite in the fabric's clock to LiteX's register bus in the memory's."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moe_hw.ddr3 import REGISTERS_ADDR_BITS
from rtl_gen.bus import OKAY, AXI4Lite
from rtl_gen.crossing import Crossing
from rtl_gen.dfi import RegisterBus

DEPTH = 4
"""Of the queues, the least there is: one access is under way at a time."""


class RegisterCrossing(wiring.Component):
    """One access at a time. A register that does not exist is read as 0; all answers are OKAY.

    Parameters
    ----------
    domain : str
        That of the registers.

    Members
    -------
    axil : In(AXI4Lite(REGISTERS_ADDR_BITS))
        Writes of whole words, in the domain ``sync``.
    bus : Out(RegisterBus())
        In the other domain.

    Latency: that of a ``Crossing`` on the way there and on the way back.
    """

    def __init__(self, domain: str):
        self.domain = domain
        super().__init__({"axil": In(AXI4Lite(REGISTERS_ADDR_BITS)), "bus": Out(RegisterBus())})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        axil, bus = self.axil, self.bus
        request_bits = 1 + len(bus.adr) + len(bus.dat_w)
        m.submodules.requests = requests = Crossing(request_bits, DEPTH, "sync", self.domain)
        m.submodules.answers = answers = Crossing(len(bus.dat_r), DEPTH, self.domain, "sync")
        request, answer = requests.o, answers.o

        # ---- in the fabric's clock ----
        waits, writing = Signal(), Signal()
        write = axil.awvalid & axil.wvalid & ~waits
        read = axil.arvalid & ~waits & ~write
        with m.If(write):
            m.d.comb += requests.i.payload.eq(Cat(write, axil.awaddr[2:], axil.wdata))
        with m.Else():
            m.d.comb += requests.i.payload.eq(Cat(write, axil.araddr[2:]))
        m.d.comb += [
            requests.i.valid.eq(write | read),
            axil.awready.eq(write),
            axil.wready.eq(write),
            axil.arready.eq(read),
            axil.bvalid.eq(answer.valid & writing),
            axil.rvalid.eq(answer.valid & ~writing),
            axil.bresp.eq(OKAY),
            axil.rresp.eq(OKAY),
            axil.rdata.eq(answer.payload),
            answer.ready.eq((axil.bvalid & axil.bready) | (axil.rvalid & axil.rready)),
        ]
        with m.If(write | read):
            m.d.sync += [waits.eq(1), writing.eq(write)]
        with m.Elif(answer.ready):
            m.d.sync += waits.eq(0)

        # ---- in the registers' clock ----
        done = Signal()
        m.d[self.domain] += done.eq(request.valid)
        m.d.comb += [
            request.ready.eq(1),
            bus.we.eq(request.valid & request.payload[0]),
            bus.re.eq(request.valid & ~request.payload[0]),
            Cat(bus.adr, bus.dat_w).eq(request.payload[1:]),
            answers.i.valid.eq(done),
            answers.i.payload.eq(bus.dat_r),
        ]
        return m
