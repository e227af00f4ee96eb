"""A table with a word for each expert: read from memory when a batch starts."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from moe_hw.arch import Arch
from rtl_gen.bursts import Bursts
from rtl_gen.bus import burst_layout, word_layout
from rtl_gen.types import address_bits, expert_bits

ENTRY_BITS = 32
"""Bits of an expert's word."""


class ExpertTable(wiring.Component):
    """Loads a table as wide as the bus, then reads it word by word.

    Latency: five cycles and the memory's from ``start`` to the first bus word; throughput: a bus word a cycle. A read
    takes one cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    start : In(1), address : In, entries : In
        Pulse: load so many entries from there (units of 64 bytes), if any; forget errors. All are held until
        ``loaded``.
    bursts : Out(stream of burst_layout(arch)), words : In(stream of word_layout(arch))
        Memory.
    loaded : Out(1)
        The table can be read.
    error : Out(1)
        The memory answered an error; sticky until ``start``.
    expert : In, entry : Out(32)
        Read port: the entry of the expert of one cycle ago.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "start": In(1),
                "address": In(address_bits(arch)),
                "entries": In(expert_bits(arch)),
                "bursts": Out(stream.Signature(burst_layout(arch))),
                "words": In(stream.Signature(word_layout(arch))),
                "loaded": Out(1, init=1),
                "error": Out(1),
                "expert": In(expert_bits(arch)),
                "entry": Out(ENTRY_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        m.submodules.cutter = cutter = Bursts(arch)
        wiring.connect(m, cutter.bursts, wiring.flipped(self.bursts))
        in_word = exact_log2(arch.data_bits // ENTRY_BITS)
        # The shared expert's gate has a number too, and no entry.
        depth = 1 << max(1, ceil_log2(arch.max_experts + 1) - in_word)
        m.submodules.table = table = Memory(shape=arch.data_bits, depth=depth, init=[])
        write, read = table.write_port(), table.read_port()
        count = (self.entries + (1 << in_word) - 1) >> in_word
        place = Signal(range(depth))
        within = Signal(range(1 << in_word))
        m.d.sync += within.eq(self.expert[:in_word])
        m.d.comb += [
            cutter.ranges.payload.address.eq(self.address),
            cutter.ranges.payload.words.eq(count),
            write.addr.eq(place),
            write.data.eq(self.words.payload.data),
            write.en.eq(self.words.valid),
            read.addr.eq(self.expert >> in_word),
            self.entry.eq(read.data.word_select(within, ENTRY_BITS)),
        ]
        with m.FSM():
            with m.State("IDLE"), m.If(self.start & (self.entries != 0)):
                m.d.sync += [self.loaded.eq(0), place.eq(0)]
                m.next = "RANGE"
            with m.State("RANGE"):
                m.d.comb += cutter.ranges.valid.eq(1)
                with m.If(cutter.ranges.ready):
                    m.next = "WORDS"
            with m.State("WORDS"):
                m.d.comb += self.words.ready.eq(1)
                with m.If(self.words.valid):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == count - 1):
                        m.d.sync += self.loaded.eq(1)
                        m.next = "IDLE"
        with m.If(self.start):
            m.d.sync += self.error.eq(0)
        with m.Elif(self.words.valid & self.words.payload.error):
            m.d.sync += self.error.eq(1)
        return m
