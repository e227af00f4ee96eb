"""Reads and writes a few bytes of memory, one AXI4 burst at a time."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moe_hw.arch import Arch
from moe_hw.bridge import LARGEST_COUNT
from rtl_gen.bus import AXI4, INCR


class MemoryAccess(wiring.Component):
    """An AXI4 master for one access at a time, whose bytes go in or out one by one.

    Parameters
    ----------
    arch : Arch
        Width of the bus and of its addresses.

    Members
    -------
    start : In(1), write : In(1), address : In(addr_bits), count : In
        An access of ``count`` bytes within one burst, at least one; not while ``busy``.
    busy : Out(1)
        From the cycle behind ``start`` until the memory has answered and all bytes have left.
    response : Out(2)
        AXI's answer to the last access: the first that is not OKAY.
    abandon : In(1)
        Nobody waits any more: what is under way ends with bytes that are not written or are dropped.
    written : In(stream of 8 bits), found : Out(stream of 8 bits)
        Exactly ``count`` of an access that is not abandoned.
    aw…, w…, b…, ar…, r… : as in ``AXI4``

    Latency: one cycle from ``start`` to the address; throughput: a bus word in a cycle more than it has bytes.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "start": In(1),
                "write": In(1),
                "address": In(arch.addr_bits),
                "count": In(range(LARGEST_COUNT + 1)),
                "busy": Out(1),
                "response": Out(2),
                "abandon": In(1),
                "written": In(stream.Signature(8)),
                "found": Out(stream.Signature(8)),
                **AXI4(arch).members,
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lane_bits = ceil_log2(self.arch.data_bits // 8)
        lane = Signal(lane_bits)
        left = Signal.like(self.count)
        word = Signal(self.arch.data_bits)
        address = Signal(self.arch.addr_bits)
        length = Signal(8)
        write = Signal()
        abandoned = Signal()
        m.d.comb += [
            *(part.eq(value) for part, value in ((self.awaddr, address), (self.araddr, address))),
            *(part.eq(length) for part in (self.awlen, self.arlen)),
            *(part.eq(lane_bits) for part in (self.awsize, self.arsize)),
            *(part.eq(INCR) for part in (self.awburst, self.arburst)),
            self.wdata.eq(word),
            self.wlast.eq(left == 0),
            self.found.payload.eq(word.word_select(lane, 8)),
        ]
        with m.If(self.abandon):
            m.d.sync += abandoned.eq(1)
        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("idle"))
            with m.State("idle"):
                m.d.sync += [
                    abandoned.eq(0),
                    write.eq(self.write),
                    address.eq(Cat(Const(0, lane_bits), self.address[lane_bits:])),
                    length.eq((self.address[:lane_bits] + self.count - 1) >> lane_bits),
                    lane.eq(self.address[:lane_bits]),
                    left.eq(self.count),
                    self.wstrb.eq(0),
                ]
                with m.If(self.start):
                    m.d.sync += self.response.eq(0)
                    m.next = "address"
            with m.State("address"):
                m.d.comb += [self.awvalid.eq(write), self.arvalid.eq(~write)]
                with m.If(write & self.awready):
                    m.next = "fill"
                with m.If(~write & self.arready):
                    m.next = "read"

            with m.State("fill"):
                m.d.comb += self.written.ready.eq(~abandoned)
                with m.If(self.written.valid | abandoned):
                    m.d.sync += [
                        word.word_select(lane, 8).eq(self.written.payload),
                        self.wstrb.bit_select(lane, 1).eq(~abandoned),
                        lane.eq(lane + 1),
                        left.eq(left - 1),
                    ]
                    with m.If(lane.all() | (left == 1)):
                        m.next = "word"
            with m.State("word"):
                m.d.comb += self.wvalid.eq(1)
                with m.If(self.wready):
                    m.d.sync += self.wstrb.eq(0)
                    m.next = "fill"
                    with m.If(left == 0):
                        m.next = "answer"
            with m.State("answer"):
                m.d.comb += self.bready.eq(1)
                with m.If(self.bvalid):
                    m.d.sync += self.response.eq(self.bresp)
                    m.next = "idle"

            with m.State("read"):
                m.d.comb += self.rready.eq(1)
                m.d.sync += word.eq(self.rdata)
                with m.If(self.rvalid):
                    with m.If(self.response == 0):
                        m.d.sync += self.response.eq(self.rresp)
                    m.next = "empty"
            with m.State("empty"):
                m.d.comb += self.found.valid.eq(~abandoned)
                with m.If(self.found.ready | abandoned):
                    m.d.sync += [lane.eq(lane + 1), left.eq(left - 1)]
                    with m.If(left == 1):
                        m.next = "idle"
                    with m.Elif(lane.all()):
                        m.next = "read"
        return m
