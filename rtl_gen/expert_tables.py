"""The tables of the experts: read from behind the layer descriptor when a batch starts."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moe_hw.arch import SEGMENT_ALIGN, Arch
from moe_hw.registers import LAYER
from rtl_gen.bursts import Bursts
from rtl_gen.bus import burst_layout, word_layout
from rtl_gen.types import address_bits, expert_bits, layer_layout

ENTRY_BITS = 32
"""Bits of an expert's word in a table."""

LINE_ENTRIES = SEGMENT_ALIGN * 8 // ENTRY_BITS
"""Words in 64 bytes, to which a table is padded."""


class ExpertTables(wiring.Component):
    """Loads where the experts lie, and their corrections if there are any; then reads both word by word.

    Latency: five cycles and the memory's from ``start`` to the first bus word; throughput: a bus word a cycle. A read
    takes one cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
        Stable from ``start`` until the batch's last read.
    start : In(1), address : In
        Pulse: load the tables of the layer whose descriptor is there (units of 64 bytes); forget errors.
    bursts : Out(stream of burst_layout(arch)), words : In(stream of word_layout(arch))
        Memory.
    loaded : Out(1)
        The tables can be read.
    error : Out(1)
        The memory answered an error; sticky until ``start``.
    expert : In, entry : Out(32)
        Read port of the first table: the word of the expert of one cycle ago.
    corrected : In, correction : Out(32, signed)
        Read port of the second one.
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
                "entry": Out(ENTRY_BITS),
                "corrected": In(expert_bits(arch)),
                "correction": Out(signed(ENTRY_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch, layer = self.arch, self.layer
        m.submodules.cutter = cutter = Bursts(arch)
        wiring.connect(m, cutter.bursts, wiring.flipped(self.bursts))
        word = data.ArrayLayout(ENTRY_BITS, arch.data_bits // ENTRY_BITS)
        line_words = LINE_ENTRIES // word.length
        # The shared expert's gate has a number too, and no entry.
        most = (arch.max_experts // LINE_ENTRIES + 1) * line_words
        count = Signal(range(most + 1))  # words of a table
        last = Signal(range(most))
        place = Signal(range(most))
        second = Signal()
        end_of_table = place == last
        m.d.sync += [
            count.eq(((layer.experts + LINE_ENTRIES - 1) >> exact_log2(LINE_ENTRIES)) << exact_log2(line_words)),
            last.eq(count - 1),
        ]
        m.d.comb += [
            cutter.ranges.payload.address.eq(self.address + LAYER.size_bytes // SEGMENT_ALIGN),
            cutter.ranges.payload.words.eq(count << (layer.correction != 0)),
        ]
        ports = ((self.expert, self.entry), (self.corrected, self.correction))
        for number, (expert, entry) in enumerate(ports):
            table = Memory(shape=word, depth=most, init=[])
            m.submodules[f"table_{number}"] = table
            write, read = table.write_port(), table.read_port()
            within = Signal(range(word.length))
            m.d.sync += within.eq(expert)
            m.d.comb += [
                write.addr.eq(place),
                write.data.eq(self.words.payload.data),
                write.en.eq(self.words.valid & (second == number)),
                read.addr.eq(expert >> exact_log2(word.length)),
                entry.eq(read.data[within]),
            ]
        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [self.loaded.eq(0), place.eq(0), second.eq(0)]
                m.next = "RANGE"
            with m.State("RANGE"):
                m.d.comb += cutter.ranges.valid.eq(1)
                with m.If(cutter.ranges.ready):
                    m.next = "WORDS"
            with m.State("WORDS"):
                m.d.comb += self.words.ready.eq(1)
                with m.If(self.words.valid):
                    m.d.sync += place.eq(place + 1)
                    with m.If(end_of_table):
                        m.d.sync += [place.eq(0), second.eq(1)]
                        with m.If(second | (layer.correction == 0)):
                            m.d.sync += self.loaded.eq(1)
                            m.next = "IDLE"
        with m.If(self.start):
            m.d.sync += self.error.eq(0)
        with m.Elif(self.words.valid & self.words.payload.error):
            m.d.sync += self.error.eq(1)
        return m
