"""Reads a command or a layer descriptor into a register."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import Arch
from moe_hw.registers import LAYER
from rtl_gen.bursts import Bursts
from rtl_gen.bus import WORD_COUNT_BITS, burst_layout, range_layout, word_layout


class RecordReader(wiring.Component):
    """Shifts the bus words of a range into ``record`` from the top, so that the range ends there.

    Latency: two cycles from a range to its first burst, one from the last word to ``complete``; throughput: a bus
    word a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    ranges : In(stream of range_layout(arch))
        What to read, when the range before is complete; at most a layer descriptor.
    bursts : Out(stream of burst_layout(arch)), words : In(stream of word_layout(arch))
        Memory.
    complete : Out(1), error : Out(1)
        All words of the range have come; the memory answered an error to one of them. Until the next range.
    record : Out(32 bits x words of a layer descriptor)
        The words of the range are the last ones.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "ranges": In(stream.Signature(range_layout(arch))),
                "bursts": Out(stream.Signature(burst_layout(arch))),
                "words": In(stream.Signature(word_layout(arch))),
                "complete": Out(1),
                "error": Out(1),
                "record": Out(32 * LAYER.size),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.cutter = cutter = Bursts(self.arch)
        wiring.connect(m, wiring.flipped(self.ranges), cutter.ranges)
        wiring.connect(m, cutter.bursts, wiring.flipped(self.bursts))
        left = Signal(WORD_COUNT_BITS)
        m.d.comb += [self.complete.eq(left == 0), self.words.ready.eq(1)]
        with m.If(self.words.valid):
            m.d.sync += [
                self.record.eq(Cat(self.record, self.words.payload.data)[self.arch.data_bits :]),
                self.error.eq(self.error | self.words.payload.error),
                left.eq(left - 1),
            ]
        with m.If(self.ranges.valid & self.ranges.ready):
            m.d.sync += [left.eq(self.ranges.payload.words), self.error.eq(0)]
        return m
