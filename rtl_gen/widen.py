"""Collects 32-bit words to the writer's width."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import Arch


class Widen(wiring.Component):
    """Collects ``lanes`` words to a value, and fills up with zeros what is missing at the end.

    Latency: one cycle from a value's last word; throughput: a word a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    words : In(stream of 32 bits), values : Out(stream of 32 x lanes bits)
    pad : In(1)
        There are no more words: zeros follow.
    clear : In(1)
        Forget what was collected.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "words": In(stream.Signature(32)),
                "values": Out(stream.Signature(32 * arch.lanes)),
                "pad": In(1),
                "clear": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes = self.arch.lanes
        index = Signal(range(lanes))
        free = ~self.values.valid | self.values.ready
        m.d.comb += self.words.ready.eq(free)
        with m.If(self.values.ready):
            m.d.sync += self.values.valid.eq(0)
        with m.If(free & (self.words.valid | self.pad)):
            m.d.sync += [
                self.values.payload.word_select(index, 32).eq(Mux(self.words.valid, self.words.payload, 0)),
                index.eq(Mux(index == lanes - 1, 0, index + 1)),
                self.values.valid.eq(index == lanes - 1),
            ]
        with m.If(self.clear):
            m.d.sync += [index.eq(0), self.values.valid.eq(0)]
        return m
