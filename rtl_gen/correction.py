"""The correction table of a layer: read from behind its descriptor."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from moe_hw.arch import SEGMENT_ALIGN, Arch
from moe_hw.registers import LAYER
from rtl_gen.bursts import Bursts
from rtl_gen.bus import burst_layout, word_layout
from rtl_gen.types import address_bits, expert_bits, layer_layout

ENTRY_BITS = 32
"""Bits of an expert's correction."""


class Correction(wiring.Component):
    """Loads the table when a batch starts, then reads it.

    Latency: five cycles and the memory's from ``start`` to the first expert's correction; throughput: an expert a
    cycle. A read takes one cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
        Stable from ``start`` until the batch's last read.
    start : In(1), address : In
        Pulse: load the table of the layer whose descriptor is there (units of 64 bytes), if it has one; forget errors.
    bursts : Out(stream of burst_layout(arch)), words : In(stream of word_layout(arch))
        Memory.
    loaded : Out(1)
        The table can be read.
    error : Out(1)
        The memory answered an error; sticky until ``start``.
    expert : In, correction : Out(32, signed)
        Read port: the correction of the expert of one cycle ago.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "start": In(1),
                "address": In(address_bits(arch)),
                "bursts": Out(stream.Signature(burst_layout(arch))),
                "words": In(stream.Signature(word_layout(arch))),
                "loaded": Out(1, init=1),
                "error": Out(1),
                "expert": In(expert_bits(arch)),
                "correction": Out(signed(ENTRY_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch, layer = self.arch, self.layer
        m.submodules.cutter = cutter = Bursts(arch)
        wiring.connect(m, cutter.bursts, wiring.flipped(self.bursts))
        # The shared expert's gate has a number too, and no correction.
        m.submodules.table = table = Memory(shape=signed(ENTRY_BITS), depth=1 << bits_for(arch.max_experts), init=[])
        write, read = table.write_port(), table.read_port()
        entries = arch.data_bits // ENTRY_BITS
        step = Signal(range(entries))
        last_step = step == entries - 1
        expert = Signal(expert_bits(arch))
        last = expert == layer.experts - 1
        m.d.comb += [
            cutter.ranges.payload.address.eq(self.address + LAYER.size_bytes // SEGMENT_ALIGN),
            cutter.ranges.payload.words.eq((layer.experts + entries - 1) >> exact_log2(entries)),
            write.addr.eq(expert),
            write.data.eq(self.words.payload.data.word_select(step, ENTRY_BITS)),
            read.addr.eq(self.expert),
            self.correction.eq(read.data),
        ]
        with m.FSM():
            with m.State("IDLE"), m.If(self.start & (layer.correction != 0)):
                m.d.sync += [self.loaded.eq(0), expert.eq(0), step.eq(0)]
                m.next = "RANGE"
            with m.State("RANGE"):
                m.d.comb += cutter.ranges.valid.eq(1)
                with m.If(cutter.ranges.ready):
                    m.next = "WORDS"
            with m.State("WORDS"):
                m.d.comb += [write.en.eq(self.words.valid), self.words.ready.eq(last_step | last)]
                with m.If(self.words.valid):
                    m.d.sync += [expert.eq(expert + 1), step.eq(Mux(last_step, 0, step + 1))]
                    with m.If(last):
                        m.d.sync += self.loaded.eq(1)
                        m.next = "IDLE"
        with m.If(self.start):
            m.d.sync += self.error.eq(0)
        with m.Elif(self.words.valid & self.words.payload.error):
            m.d.sync += self.error.eq(1)
        return m
