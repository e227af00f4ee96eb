"""The control and status registers behind AXI4-Lite, as ``moe_hw.registers.CSRS`` lists them."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moe_hw.ddr3 import REGISTERS_ADDR_BITS, REGISTERS_BASE
from moe_hw.registers import CSRS
from rtl_gen.bus import OKAY, SLVERR, AXI4Lite

CSR_ADDR_BITS = ceil_log2(4 * len(CSRS)) + 1

HOST_ADDR_BITS = ceil_log2(REGISTERS_BASE) + 1
"""Of a host's bus to a device whose memory has registers, too: its highest bit is ``REGISTERS_BASE``."""

assert CSR_ADDR_BITS < HOST_ADDR_BITS and REGISTERS_ADDR_BITS < HOST_ADDR_BITS


def host_addr_bits(memory_registers: bool) -> int:
    """Of a host's bus to the CSRs."""
    return HOST_ADDR_BITS if memory_registers else CSR_ADDR_BITS


class Registers(wiring.Component):
    """One member for each CSR: an input if it is read-only, an output if the host writes it.

    A read or write outside the map, a write to a read-only register and a write of less than a word are answered
    SLVERR and change nothing. Latency one cycle; throughput an access every two cycles.

    Members
    -------
    bus : In(AXI4Lite(CSR_ADDR_BITS))
    ring_base, ring_mask, tail : Out(32)
    magic, version, config_hash_low, config_hash_high, head, status, state : In(32)
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "bus": In(AXI4Lite(CSR_ADDR_BITS)),
                **{csr.name: Out(32) if csr.access == "rw" else In(32) for csr in CSRS},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bus = self.bus

        write = Signal()
        m.d.comb += [
            write.eq(bus.awvalid & bus.wvalid & ~bus.bvalid),
            bus.awready.eq(write),
            bus.wready.eq(write),
        ]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(write):
            m.d.sync += [bus.bvalid.eq(1), bus.bresp.eq(SLVERR)]
            with m.Switch(bus.awaddr[2:]):
                for index, csr in enumerate(CSRS):
                    if csr.access == "rw":
                        with m.Case(index), m.If(bus.wstrb.all()):
                            m.d.sync += [getattr(self, csr.name).eq(bus.wdata), bus.bresp.eq(OKAY)]

        read = Signal()
        m.d.comb += [read.eq(bus.arvalid & ~bus.rvalid), bus.arready.eq(read)]
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(read):
            m.d.sync += [bus.rvalid.eq(1), bus.rresp.eq(SLVERR), bus.rdata.eq(0)]
            with m.Switch(bus.araddr[2:]):
                for index, csr in enumerate(CSRS):
                    with m.Case(index):
                        m.d.sync += [bus.rdata.eq(getattr(self, csr.name)), bus.rresp.eq(OKAY)]
        return m
