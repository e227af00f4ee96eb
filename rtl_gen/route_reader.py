"""Reads given routes, for layers whose router is on the host."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from moe_hw.arch import EXP_MIN, Arch
from rtl_gen.bursts import Bursts
from rtl_gen.bus import burst_layout, word_layout
from rtl_gen.routing_record import FLOAT_BIAS, FLOAT_FRACTION, MANTISSA_FRACTION
from rtl_gen.types import address_bits, layer_layout, route_layout

ENTRY_BITS = 64
"""An expert and a float32 weight."""


def connect_weight(m: Module, weight: data.View, bits: Value) -> None:
    """A routing weight of a float32, of which the upper 16 significant bits count; subnormal numbers are 0."""
    exponent = bits[FLOAT_FRACTION:-1]
    m.d.comb += [
        weight.mantissa.eq(Mux(exponent == 0, 0, Cat(bits[FLOAT_FRACTION - MANTISSA_FRACTION : FLOAT_FRACTION], 1))),
        weight.exponent.eq(Mux(exponent == 0, EXP_MIN, exponent - FLOAT_BIAS - MANTISSA_FRACTION)),
        weight.negative.eq(bits[-1]),
    ]


class RouteReader(wiring.Component):
    """Streams the entries of a record in the form of the routing record, token by token.

    Latency: four cycles from ``start`` to the request; throughput: an entry a cycle, or a bus word.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
        Stable from ``start`` until the last route.
    start : In(1), address : In, entries : In
        Pulse: read the record of so many entries there (units of 64 bytes), if the layer's routes are given; forget
        errors.
    bursts : Out(stream of burst_layout(arch)), words : In(stream of word_layout(arch))
        Memory.
    routes : Out(stream of route_layout(arch))
        As from ``Router``. An entry whose expert is not one of the layer's is ``none``; in the shared expert's place,
        only the weight counts.
    busy : Out(1)
        Entries are still to come.
    error : Out(1)
        The memory answered an error; sticky until ``start``.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "start": In(1),
                "address": In(address_bits(arch)),
                "entries": In(bits_for(arch.queue_entries)),
                "bursts": Out(stream.Signature(burst_layout(arch))),
                "words": In(stream.Signature(word_layout(arch))),
                "routes": Out(stream.Signature(route_layout(arch))),
                "busy": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch, layer = self.arch, self.layer
        route = self.routes.payload
        m.submodules.cutter = cutter = Bursts(arch)
        wiring.connect(m, cutter.bursts, wiring.flipped(self.bursts))

        # ---- where the stream is ----
        final_choice = Signal(5)  # of a token
        token, choice = Signal.like(route.token), Signal.like(final_choice)
        words = Signal.like(cutter.ranges.payload.words)
        shared = Signal()
        end_of_token = choice == final_choice
        taken = self.routes.valid & self.routes.ready
        m.d.sync += [
            final_choice.eq(layer.top_k - (layer.shared_blocks == 0)),
            words.eq(((self.entries << exact_log2(ENTRY_BITS)) + arch.data_bits - 1) >> exact_log2(arch.data_bits)),
        ]
        m.d.comb += [
            cutter.ranges.payload.address.eq(self.address),
            cutter.ranges.payload.words.eq(words),
            shared.eq(choice == layer.top_k),
            route.last.eq(end_of_token & (token == layer.tokens - 1)),
        ]
        with m.FSM():
            with m.State("IDLE"), m.If(self.start & layer.given_routes):
                m.next = "RANGE"
            with m.State("RANGE"):
                m.d.comb += [self.busy.eq(1), cutter.ranges.valid.eq(1)]
                with m.If(cutter.ranges.ready):
                    m.next = "ROUTES"
            with m.State("ROUTES"):
                m.d.comb += self.busy.eq(1)
                with m.If(taken):
                    m.d.sync += choice.eq(Mux(end_of_token, 0, choice + 1))
                    with m.If(end_of_token):
                        m.d.sync += token.eq(token + 1)
                    with m.If(route.last):
                        m.d.sync += token.eq(0)
                        m.next = "IDLE"

        # ---- words become entries ----
        entry = Signal(ENTRY_BITS)
        word = self.words.payload.data
        steps = max(ENTRY_BITS, arch.data_bits) // min(ENTRY_BITS, arch.data_bits)
        step = Signal(range(steps))
        last_step = step == steps - 1
        if arch.data_bits < ENTRY_BITS:
            earlier = Signal(arch.data_bits)
            m.d.comb += [
                entry.eq(Cat(earlier, word)),
                self.routes.valid.eq(self.words.valid & last_step),
                self.words.ready.eq(self.routes.ready | ~last_step),
            ]
            with m.If(self.words.valid & self.words.ready):
                m.d.sync += [earlier.eq(word), step.eq(~step)]
        else:
            m.d.comb += [
                entry.eq(word.word_select(step, ENTRY_BITS) if steps > 1 else word),
                self.routes.valid.eq(self.words.valid),
                self.words.ready.eq(self.routes.ready & (last_step | route.last)),
            ]
            with m.If(taken):
                m.d.sync += step.eq(Mux(last_step | route.last, 0, step + 1))

        expert = entry[:32]
        m.d.comb += [
            route.token.eq(token),
            route.expert.eq(Mux(shared, layer.experts, expert)),
            route.none.eq(~shared & (expert >= layer.experts)),
        ]
        connect_weight(m, route.weight, entry[32:])
        with m.If(self.start):
            m.d.sync += self.error.eq(0)
        with m.Elif(self.words.valid & self.words.payload.error):
            m.d.sync += self.error.eq(1)
        return m
