"""AXI4-Lite in the fabric's clock to LiteX's register bus in the memory's."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import AsyncFIFO
from amaranth.lib.wiring import In, Out

from moe_hw.ddr3 import REGISTERS_ADDR_BITS
from rtl_gen.bus import OKAY, AXI4Lite
from rtl_gen.dfi import RegisterBus

DEPTH = 2
"""Of the queues: there is one access at a time."""


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

    Latency: three cycles of each clock on the way there, as many on the way back.
    """

    def __init__(self, domain: str):
        self.domain = domain
        super().__init__({"axil": In(AXI4Lite(REGISTERS_ADDR_BITS)), "bus": Out(RegisterBus())})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        axil, bus = self.axil, self.bus
        there, back = {"w_domain": "sync", "r_domain": self.domain}, {"w_domain": self.domain, "r_domain": "sync"}
        request_bits = 1 + len(bus.adr) + len(bus.dat_w)
        m.submodules.requests = requests = AsyncFIFO(width=request_bits, depth=DEPTH, **there)
        m.submodules.answers = answers = AsyncFIFO(width=len(bus.dat_r), depth=DEPTH, **back)

        # ---- in the fabric's clock ----
        waits, writing = Signal(), Signal()
        write = axil.awvalid & axil.wvalid & ~waits
        read = axil.arvalid & ~waits & ~write
        with m.If(write):
            m.d.comb += requests.w_data.eq(Cat(write, axil.awaddr[2:], axil.wdata))
        with m.Else():
            m.d.comb += requests.w_data.eq(Cat(write, axil.araddr[2:]))
        m.d.comb += [
            requests.w_en.eq(write | read),
            axil.awready.eq(write),
            axil.wready.eq(write),
            axil.arready.eq(read),
            axil.bvalid.eq(answers.r_rdy & writing),
            axil.rvalid.eq(answers.r_rdy & ~writing),
            axil.bresp.eq(OKAY),
            axil.rresp.eq(OKAY),
            axil.rdata.eq(answers.r_data),
            answers.r_en.eq((axil.bvalid & axil.bready) | (axil.rvalid & axil.rready)),
        ]
        with m.If(requests.w_en):
            m.d.sync += [waits.eq(1), writing.eq(write)]
        with m.Elif(answers.r_en):
            m.d.sync += waits.eq(0)

        # ---- in the registers' clock ----
        answer = Signal()
        m.d[self.domain] += answer.eq(requests.r_en)
        m.d.comb += [
            requests.r_en.eq(requests.r_rdy),
            bus.we.eq(requests.r_rdy & requests.r_data[0]),
            bus.re.eq(requests.r_rdy & ~requests.r_data[0]),
            Cat(bus.adr, bus.dat_w).eq(requests.r_data[1:]),
            answers.w_en.eq(answer),
            answers.w_data.eq(bus.dat_r),
        ]
        return m
