"""Counts what a command's cycles went into; the words of ``moe_hw.registers.COUNTERS``."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moe_hw.registers import COUNTERS


class Counters(wiring.Component):
    """A 32-bit counter for each name, to which its events are added in their cycle.

    Parameters
    ----------
    most : int
        Events of a name in a cycle.

    Members
    -------
    clear : In(1)
        Pulse: all counters to zero.
    enable : In(1)
        Events count.
    <name>_event : In, <name> : Out(32)
        For every name in ``COUNTERS``.

    Latency: two cycles; throughput: ``most`` events of each name a cycle.
    """

    def __init__(self, most: int = 1) -> None:
        members = {}
        for word in COUNTERS:
            members[f"{word.name}_event"] = In(range(most + 1))
            members[word.name] = Out(32)
        super().__init__({"clear": In(1), "enable": In(1), **members})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Events come from everywhere, so they are counted a cycle later.
        clear, enable = Signal(), Signal()
        m.d.sync += [clear.eq(self.clear), enable.eq(self.enable)]
        for word in COUNTERS:
            count, event = getattr(self, word.name), getattr(self, f"{word.name}_event")
            counted = Signal.like(event, name=f"{word.name}_counted")
            m.d.sync += counted.eq(event)
            with m.If(clear):
                m.d.sync += count.eq(0)
            with m.Elif(enable):
                m.d.sync += count.eq(count + counted)
        return m
