"""The board's SDR SDRAM as an AXI4 slave: front end, clock crossing and controller."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, DomainRenamer, Module, Value
from amaranth.lib import wiring
from amaranth.lib.fifo import AsyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from boards import Board
from moe_hw.arch import Arch
from rtl_gen.bus import AXI4
from rtl_gen.sdram_axi import READ_WORDS, SdramAxi
from rtl_gen.sdram_controller import SdramController
from rtl_gen.sdram_pins import SdramPins
from rtl_gen.sdram_timing import BURST
from rtl_gen.skid_buffer import SkidBuffer

DOMAIN = "sdram"
"""The clock domain of the chip and its controller."""

SEGMENTS = 4
"""Segments that can wait for the controller."""

WRITE_WORDS = 512
"""Words that can wait for the controller; at least the longest burst. A block RAM holds so many."""

CROSSING_WORDS = 8
"""Words on their way from one clock to the other. So few that the pointers keep up with the chip's clock."""


class Sdram(wiring.Component):
    """An AXI4 slave in the domain ``sync`` with the chip in the domain ``sdram``.

    The clocks may have any phase; the fabric's is at least half as fast as the chip's, so that it takes words as fast
    as they come. Both domains are reset together, for at least four clocks of the slower one; the chip is then
    initialised anew, 210 µs during which bursts wait.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator, for the bus: 32 bits wide.
    board : Board
        Its memory is one SDR SDRAM of 16 bits.

    Members
    -------
    axi : In(AXI4(arch))
        INCR bursts of whole words of any length, see :class:`rtl_gen.sdram_axi.SdramAxi`.
    pins : Out(SdramPins(memory))
        In the domain ``sdram``, for :class:`rtl_gen.sdram_pins.SdramPads`.

    Latency: 18 cycles of 80 MHz from a read of an open row to its word, with the chip at 133 MHz. Throughput: 98.5 % of
    the chip's pins for long sequential reads and writes; the rest is refresh.
    """

    def __init__(self, arch: Arch, board: Board):
        memory = board.memory
        if arch.data_bits != BURST * memory.data_bits:
            raise ValueError(
                f"data_bits: expected {BURST * memory.data_bits}, two transfers of the memory, got {arch.data_bits}"
            )
        slowest = memory.mt_per_s / BURST
        if board.clock_mhz < slowest:
            raise ValueError(f"clock_mhz: expected at least {slowest:g}, half of the memory's, got {board.clock_mhz:g}")
        self.arch = arch
        self.memory = memory
        super().__init__({"axi": In(AXI4(arch)), "pins": Out(SdramPins(memory))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.front = front = SdramAxi(self.arch, self.memory)
        controller = SdramController(self.memory)
        m.submodules.controller = DomainRenamer(DOMAIN)(controller)
        wiring.connect(m, wiring.flipped(self.axi), front.axi)
        wiring.connect(m, controller.pins, wiring.flipped(self.pins))

        # Queues in the fabric's clock are long, those between the clocks are short.
        there, back = {"w_domain": "sync", "r_domain": DOMAIN}, {"w_domain": DOMAIN, "r_domain": "sync"}
        segment_bits, write_bits = len(Cat(front.segments.payload)), len(Cat(front.writes.payload))
        m.submodules.segments = segments = AsyncFIFO(width=segment_bits, depth=SEGMENTS, **there)
        m.submodules.writes = writes = SyncFIFOBuffered(width=write_bits, depth=WRITE_WORDS)
        m.submodules.writes_over = writes_over = AsyncFIFO(width=write_bits, depth=CROSSING_WORDS, **there)
        m.submodules.next_write = next_write = DomainRenamer(DOMAIN)(SkidBuffer(write_bits))
        m.submodules.words_over = words_over = AsyncFIFO(width=self.arch.data_bits, depth=CROSSING_WORDS, **back)
        m.submodules.words = words = SyncFIFOBuffered(width=self.arch.data_bits, depth=READ_WORDS)
        m.d.comb += [
            *_connect(front.segments, segments.w_stream),
            *_connect(segments.r_stream, controller.segments),
            *_connect(front.writes, writes.w_stream),
            *_connect(writes.r_stream, writes_over.w_stream),
            *_connect(writes_over.r_stream, next_write.i),
            *_connect(next_write.o, controller.writes),
            words_over.w_data.eq(controller.words),
            words_over.w_en.eq(controller.word_valid),
            *_connect(words_over.r_stream, words.w_stream),
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
