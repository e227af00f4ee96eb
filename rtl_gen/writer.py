"""Writes values to memory: hidden activations, outputs, routing and completion records."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moe_hw.arch import Arch
from rtl_gen.bursts import Bursts
from rtl_gen.bus import INCR, AXI4Write, range_layout

MAX_WRITES = 15
"""Write bursts whose answers may be outstanding."""


class Writer(wiring.Component):
    """Packs values into bus words and writes them in bursts.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    ranges : In(stream of range_layout(arch))
        Where the next values go; each range gets as many as fill its bus words.
    values : In(stream of 32 x lanes bits)
    busy : Out(1)
        From a range until the memory has answered all its bursts.
    clear : In(1), error : Out(1)
        The memory answered an error; sticky until ``clear``.
    aw…, w…, b… : as in ``AXI4Write``

    Latency: five cycles from a range to its address; throughput: a value a cycle, less two cycles for each burst.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "ranges": In(stream.Signature(range_layout(arch))),
                "values": In(stream.Signature(32 * arch.lanes)),
                "busy": Out(1),
                "clear": In(1),
                "error": Out(1),
                **AXI4Write(arch).members,
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        value_bits = 32 * arch.lanes
        per_word = arch.data_bits // value_bits

        m.submodules.cutter = cutter = Bursts(arch)
        wiring.connect(m, wiring.flipped(self.ranges), cutter.ranges)
        burst = Signal.like(cutter.bursts.payload)
        unanswered = Signal(range(MAX_WRITES + 1))
        lane = Signal(range(per_word))
        words_left = Signal(9)  # bus words of the burst not yet offered
        any_left = Signal()  # words_left is not 0: all that write wait for it
        m.d.comb += [
            self.awsize.eq(ceil_log2(arch.data_bits // 8)),
            self.awburst.eq(INCR),
            self.awaddr.eq(burst.address),
            self.awlen.eq(burst.length),
            self.bready.eq(1),
            self.wstrb.eq(-1),
            self.busy.eq(self.ranges.valid | ~cutter.ranges.ready | any_left | (unanswered != 0)),
        ]
        sent = self.awvalid & self.awready
        answered = self.bvalid & self.bready
        m.d.sync += unanswered.eq(unanswered + (cutter.bursts.valid & cutter.bursts.ready) - answered)
        with m.If(self.clear):
            m.d.sync += self.error.eq(0)
        with m.Elif(answered & (self.bresp != 0)):
            m.d.sync += self.error.eq(1)

        # The next burst's address is offered when the data of the one before have left. Data wait for their
        # address to be taken: AXI does not ask for it, but simple memories do. Nothing that writes waits for `awready`
        # itself, which comes from far away.
        full = lane == per_word - 1
        open_ = any_left & ~self.awvalid & (~self.wvalid | self.wready)
        taken = open_ & self.values.valid
        m.d.comb += [
            self.values.ready.eq(open_),
            cutter.bursts.ready.eq(~any_left & ~self.awvalid & (unanswered != MAX_WRITES)),
        ]
        with m.If(sent):
            m.d.sync += self.awvalid.eq(0)
        with m.If(self.wready):
            m.d.sync += self.wvalid.eq(0)
        with m.If(cutter.bursts.valid & cutter.bursts.ready):
            m.d.sync += [
                burst.eq(cutter.bursts.payload),
                words_left.eq(cutter.bursts.payload.length + 1),
                any_left.eq(1),
                self.awvalid.eq(1),
            ]
        with m.If(taken):
            m.d.sync += [
                self.wdata.word_select(lane, value_bits).eq(self.values.payload),
                lane.eq(Mux(full, 0, lane + 1)),
            ]
            with m.If(full):
                m.d.sync += [self.wvalid.eq(1), self.wlast.eq(words_left == 1), words_left.eq(words_left - 1)]
                m.d.sync += any_left.eq(words_left != 1)
        return m
