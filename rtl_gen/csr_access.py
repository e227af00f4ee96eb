"""Reads and writes the device's CSRs, one at a time."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl_gen.bus import AXI4Lite


class CsrAccess(wiring.Component):
    """An AXI4-Lite master for one access at a time.

    Parameters
    ----------
    addr_bits : int
        Bits of a byte address.

    Members
    -------
    start : In(1), write : In(1), address : In(addr_bits), value : In(32)
        An access; not while ``busy``.
    busy : Out(1)
        From the cycle behind ``start`` until the answer.
    response : Out(2), found : Out(32)
        How the last access ended, and what it read.
    clear : In(1)
        The other side is in reset: forget the access.
    m_axil : Out(AXI4Lite(addr_bits))

    Latency: three cycles with a slave that answers in the next one.
    """

    def __init__(self, addr_bits: int):
        super().__init__(
            {
                "start": In(1),
                "write": In(1),
                "address": In(addr_bits),
                "value": In(32),
                "busy": Out(1),
                "response": Out(2),
                "found": Out(32),
                "clear": In(1),
                "m_axil": Out(AXI4Lite(addr_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bus = self.m_axil
        m.d.comb += [bus.araddr.eq(bus.awaddr), bus.wstrb.eq(-1), bus.bready.eq(1), bus.rready.eq(1)]
        for valid, ready in (
            (bus.awvalid, bus.awready),
            (bus.wvalid, bus.wready),
            (bus.arvalid, bus.arready),
            (self.busy, bus.bvalid | bus.rvalid),
        ):
            with m.If(ready):
                m.d.sync += valid.eq(0)
        with m.If(bus.bvalid):
            m.d.sync += self.response.eq(bus.bresp)
        with m.If(bus.rvalid):
            m.d.sync += [self.response.eq(bus.rresp), self.found.eq(bus.rdata)]
        with m.If(self.start):
            m.d.sync += [
                bus.awaddr.eq(self.address),
                bus.wdata.eq(self.value),
                bus.awvalid.eq(self.write),
                bus.wvalid.eq(self.write),
                bus.arvalid.eq(~self.write),
                self.busy.eq(1),
            ]
        with m.If(self.clear):
            m.d.sync += [bus.awvalid.eq(0), bus.wvalid.eq(0), bus.arvalid.eq(0), self.busy.eq(0)]
        return m
