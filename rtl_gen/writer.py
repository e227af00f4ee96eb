"""Writes streams of 32-bit words to memory: outputs, routing and completion records."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moe_hw.arch import Arch
from rtl_gen.bursts import Bursts
from rtl_gen.bus import AXI4, INCR, WORD_COUNT_BITS
from rtl_gen.types import address_bits

MAX_WRITES = 15
"""Write bursts whose answers may be outstanding."""


class Writer(wiring.Component):
    """Packs 32-bit words into bus words and writes them in bursts.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    start : In(1), address : In, count : In
        Pulse: write the next ``count`` words (at least 1) of ``values`` from ``address`` (units of 64 bytes).
    values : In(stream of 32 bits)
    busy : Out(1)
        From ``start`` until the memory has answered every burst.
    clear : In(1), error : Out(1)
        The memory answered an error; sticky until ``clear``.
    aw…, w…, b… : the write half of ``AXI4``

    Latency: three cycles from ``start`` to the first address; throughput: a 32-bit word a cycle, less an address cycle
    for each burst.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        axi = {name: member for name, member in AXI4(arch).members.items() if name.startswith(("aw", "w", "b"))}
        super().__init__(
            {
                "start": In(1),
                "address": In(address_bits(arch)),
                "count": In(WORD_COUNT_BITS),
                "values": In(stream.Signature(32)),
                "busy": Out(1),
                "clear": In(1),
                "error": Out(1),
                **axi,
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        per_word = arch.data_bits // 32

        m.submodules.cutter = cutter = Bursts(arch)
        burst = Signal.like(cutter.bursts.payload)
        values_left = Signal(WORD_COUNT_BITS)
        unanswered = Signal(range(MAX_WRITES + 1))
        lane = Signal(range(per_word))
        words_left = Signal(9)  # bus words of the burst not yet offered
        m.d.comb += [
            self.awsize.eq(ceil_log2(arch.data_bits // 8)),
            self.awburst.eq(INCR),
            self.awaddr.eq(burst.address),
            self.awlen.eq(burst.length),
            self.bready.eq(1),
            cutter.ranges.payload.address.eq(self.address),
            cutter.ranges.payload.words.eq((self.count + per_word - 1) >> ceil_log2(per_word)),
        ]
        answered = self.bvalid & self.bready
        sent = self.awvalid & self.awready
        m.d.sync += unanswered.eq(unanswered + sent - answered)
        with m.If(self.clear):
            m.d.sync += self.error.eq(0)
        with m.Elif(answered & (self.bresp != 0)):
            m.d.sync += self.error.eq(1)
        with m.If(self.wready):
            m.d.sync += self.wvalid.eq(0)

        with m.FSM():
            with m.State("idle"):
                m.d.comb += [cutter.ranges.valid.eq(self.start), self.busy.eq(self.start)]
                m.d.sync += values_left.eq(self.count)
                with m.If(self.start):
                    m.next = "address"
            with m.State("address"):
                m.d.comb += [self.busy.eq(1), cutter.bursts.ready.eq(unanswered < MAX_WRITES)]
                m.d.sync += [burst.eq(cutter.bursts.payload), words_left.eq(cutter.bursts.payload.length + 1)]
                with m.If(cutter.bursts.valid & cutter.bursts.ready):
                    m.d.sync += self.awvalid.eq(1)
                    m.next = "data"
                with m.Elif((values_left == 0) & (unanswered == 0) & ~self.wvalid & ~self.awvalid):
                    m.next = "idle"
            with m.State("data"):
                m.d.comb += self.busy.eq(1)
                with m.If(sent):
                    m.d.sync += self.awvalid.eq(0)
                # A bus word is filled lane by lane, then offered; missing lanes at the end are not strobed.
                # Data wait for their address to be taken: AXI does not ask for it, but simple memories do.
                open_ = (words_left != 0) & (~self.awvalid | self.awready) & (~self.wvalid | self.wready)
                full = (lane == per_word - 1) | (values_left == 1)
                m.d.comb += self.values.ready.eq(open_)
                with m.If(open_ & self.values.valid):
                    m.d.sync += [
                        self.wdata.word_select(lane, 32).eq(self.values.payload),
                        self.wstrb.eq(Mux(lane == 0, 0, self.wstrb)),
                        self.wstrb.word_select(lane, 4).eq(0xF),
                        lane.eq(Mux(full, 0, lane + 1)),
                        values_left.eq(values_left - 1),
                    ]
                    with m.If(full):
                        m.d.sync += [self.wvalid.eq(1), self.wlast.eq(words_left == 1), words_left.eq(words_left - 1)]
                with m.If((words_left == 0) & ~self.awvalid & ~self.wvalid):
                    m.next = "address"
        return m
