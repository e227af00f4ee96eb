"""The routing record: sends what the router chose, with weights as float32."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import Arch
from rtl_gen.expert_queues import entry_layout
from rtl_gen.types import expert_bits, place_bits

FLOAT_BIAS = 127
"""Bias of a float32 exponent."""

FLOAT_FRACTION = 23
"""Bits of a float32 fraction."""

MANTISSA_FRACTION = 15
"""A routing weight's mantissa has this many bits below its leading one."""


def float_bits(weight: data.View) -> Value:
    """float32 of a routing weight, exact; 0 below the smallest normal number."""
    exponent = weight.exponent + (MANTISSA_FRACTION + FLOAT_BIAS)
    padding = Const(0, FLOAT_FRACTION - MANTISSA_FRACTION)
    return Mux(exponent > 0, Cat(padding, weight.mantissa[:MANTISSA_FRACTION], exponent[:8], weight.negative), 0)


class RoutingRecord(wiring.Component):
    """Reads the entries of the expert queues in order of arrival and sends two words for each.

    Latency: three cycles from ``start`` to the first word; throughput: an entry every four cycles.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    start : In(1), arrived : In
        Pulse: send the record of ``arrived`` entries, at least one.
    place : Out, entry : In(entry_layout(arch))
        Read port of the entries; ``entry`` follows its place by one cycle.
    words : Out(stream of 32 bits)
        For each entry, its expert and its weight.
    idle : Out(1)
        All words have been taken.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "start": In(1),
                "arrived": In(range(arch.queue_entries + 1)),
                "place": Out(place_bits(arch)),
                "entry": In(entry_layout(arch)),
                "words": Out(stream.Signature(32)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        expert = Signal(expert_bits(self.arch))
        converted = Signal(32)
        weight = Signal.like(self.entry.weight)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.idle.eq(1)
                m.d.sync += self.place.eq(0)
                with m.If(self.start):
                    m.next = "FETCH"

            with m.State("FETCH"):
                m.next = "TAKE"

            with m.State("TAKE"):
                m.d.sync += [expert.eq(self.entry.expert), weight.eq(self.entry.weight)]
                m.next = "EXPERT"

            with m.State("EXPERT"):
                m.d.comb += [self.words.valid.eq(1), self.words.payload.eq(expert)]
                m.d.sync += converted.eq(float_bits(weight))
                with m.If(self.words.ready):
                    m.next = "WEIGHT"

            with m.State("WEIGHT"):
                m.d.comb += [self.words.valid.eq(1), self.words.payload.eq(converted)]
                with m.If(self.words.ready):
                    m.d.sync += self.place.eq(self.place + 1)
                    m.next = "FETCH"
                    with m.If(self.place == self.arrived - 1):
                        m.next = "IDLE"
        return m
