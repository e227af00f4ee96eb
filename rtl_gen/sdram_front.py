"""What every memory controller has in front: an AXI4 slave in the fabric's clock, and the crossing to its own clock."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Value
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from boards import Memory
from moe_hw.arch import Arch
from rtl_gen.bus import AXI4
from rtl_gen.crossing import Crossing
from rtl_gen.sdram_axi import READ_WORDS, SdramAxi
from rtl_gen.sdram_types import segment_layout, word_layout

SEGMENTS = 4
"""Segments that can wait for the controller."""

WRITE_WORDS = 512
"""Words that can wait for the controller; at least the longest burst. A block RAM holds so many."""

CROSSING_WORDS = 8
"""Words on their way from one clock to the other. So few that the pointers keep up with the memory's clock."""


class SdramFront(wiring.Component):
    """Bursts come in the domain ``sync``, segments and words leave in the controller's.

    The clocks may have any phase. Both domains are reset together, for at least four clocks of the slower one. The
    fabric takes words as fast as the controller brings them: they cannot wait.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator, for the bus.
    memory : Memory
        The board's memory.
    domain : str
        The controller's.

    Members
    -------
    axi : In(AXI4(arch))
        INCR bursts of whole words of any length, see :class:`rtl_gen.sdram_axi.SdramAxi`.
    segments : Out(stream of segment_layout(memory)), writes : Out(stream of word_layout(memory))
        For the controller. The words of a write come with its segment, or a few clocks later.
    words : In, word_valid : In(1)
        What the controller has read.

    Latency: three cycles of ``sync`` and three of the controller's clock on requests, as many of each on words.
    Throughput: a word a cycle of the slower clock.
    """

    def __init__(self, arch: Arch, memory: Memory, domain: str):
        self.arch = arch
        self.memory = memory
        self.domain = domain
        super().__init__(
            {
                "axi": In(AXI4(arch)),
                "segments": Out(stream.Signature(segment_layout(memory))),
                "writes": Out(stream.Signature(word_layout(memory))),
                "words": In(arch.data_bits),
                "word_valid": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.front = front = SdramAxi(self.arch, self.memory)
        wiring.connect(m, wiring.flipped(self.axi), front.axi)

        # Queues in the fabric's clock are long, those between the clocks are short.
        write_bits, data_bits = len(Cat(front.writes.payload)), self.arch.data_bits
        segment_shape = front.segments.payload.shape()
        m.submodules.segments = segments = Crossing(segment_shape, SEGMENTS, "sync", self.domain)
        m.submodules.writes = writes = SyncFIFOBuffered(width=write_bits, depth=WRITE_WORDS)
        m.submodules.writes_over = writes_over = Crossing(write_bits, CROSSING_WORDS, "sync", self.domain)
        m.submodules.words_over = words_over = Crossing(data_bits, CROSSING_WORDS, self.domain, "sync")
        m.submodules.words = words = SyncFIFOBuffered(width=data_bits, depth=READ_WORDS)
        m.d.comb += [
            *_connect(front.segments, segments.i),
            *_connect(segments.o, self.segments),
            *_connect(front.writes, writes.w_stream),
            *_connect(writes.r_stream, writes_over.i),
            *_connect(writes_over.o, self.writes),
            words_over.i.payload.eq(self.words),
            words_over.i.valid.eq(self.word_valid),
            *_connect(words_over.o, words.w_stream),
            *_connect(words.r_stream, front.words),
        ]
        return m


def _connect(source: Any, sink: Any) -> list[Any]:
    """What carries a stream over, whatever the shapes of its two payloads."""
    return [
        Value.cast(sink.payload).eq(source.payload),
        sink.valid.eq(source.valid),
        source.ready.eq(sink.ready),
    ]
