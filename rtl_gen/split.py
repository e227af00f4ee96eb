"""Splits a queue of vectors into jobs of nearly equal size."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import Arch
from rtl_gen.types import count_bits


class Split(wiring.Component):
    """Finds the fewest parts of at most ``slots`` vectors, whose sizes differ by one at most: never 32 + 1.

    Latency: two cycles from ``start`` to ``done`` for one part; for more, another for each part and for each vector of
    the smallest part.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    start : In(1), count : In, slots : In
        Pulse: split ``count`` vectors, at least one. Both are held until ``done``.
    done : Out(1)
        The results are there, until the next ``start``.
    parts : Out, base : Out, extra : Out
        The first ``extra`` parts have ``base`` + 1 vectors, the others ``base``.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "start": In(1),
                "count": In(count_bits(arch)),
                "slots": In(bits_for(arch.slots)),
                "done": Out(1),
                "parts": Out(count_bits(arch)),
                "base": Out(bits_for(arch.slots)),
                "extra": Out(count_bits(arch)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        with m.FSM():
            with m.State("DONE"):
                m.d.comb += self.done.eq(1)
                with m.If(self.start):
                    m.d.sync += [self.parts.eq(1), self.extra.eq(self.count), self.base.eq(0)]
                    m.next = "COUNT"

            with m.State("COUNT"):
                with m.If(self.extra > self.slots):
                    m.d.sync += [self.extra.eq(self.extra - self.slots), self.parts.eq(self.parts + 1)]
                with m.Elif(self.parts == 1):
                    m.d.sync += [self.base.eq(self.extra), self.extra.eq(0)]
                    m.next = "DONE"
                with m.Else():
                    m.d.sync += self.extra.eq(self.count)
                    m.next = "DIVIDE"

            with m.State("DIVIDE"):
                with m.If(self.extra >= self.parts):
                    m.d.sync += [self.extra.eq(self.extra - self.parts), self.base.eq(self.base + 1)]
                with m.Else():
                    m.next = "DONE"
        return m
