"""Gathers the vectors of a job from memory: inputs by token, hidden activations by place."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Shape, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from moe_hw.arch import EXP_BITS, ROWS, SEGMENT_ALIGN, Arch
from rtl_gen.bursts import Bursts
from rtl_gen.bus import burst_layout, word_layout
from rtl_gen.types import fetch_layout, slot_bits, token_bits

FETCHES = 16
"""Vectors that can be on their way."""


def line_layout(arch: Arch) -> data.StructLayout:
    """A block of a vector: its mantissas and exponent.

    ``first`` is the first block of a job, ``start`` that of a vector, ``peak`` the last that counts for the vector's
    exponent, ``last`` the job's last block. ``router`` marks the lines of tokens, as the router gets them.
    """
    return data.StructLayout(
        {
            "mantissas": data.ArrayLayout(8, ROWS),
            "exponent": signed(EXP_BITS),
            "half": 1,
            "slot": slot_bits(arch),
            "token": token_bits(arch),
            "router": 1,
            "first": 1,
            "start": 1,
            "peak": 1,
            "last": 1,
        }
    )


class Loader(wiring.Component):
    """Reads vectors, lines of 64 bytes (``docs/memory-image.md`` section 3).

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    fetches : In(stream of fetch_layout(arch))
        Vectors to read. There must be room for them in the vector buffer.
    bursts : Out(stream of burst_layout(arch)), words : In(stream of word_layout(arch))
        Memory.
    valid : Out(1), line : Out(line_layout(arch))
        A line in each cycle that is ``valid``.
    clear : In(1), error : Out(1)
        The memory answered an error; sticky until ``clear``.

    Latency: four cycles from a fetch to its burst, one from a line's last word; throughput: a bus word a cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "fetches": In(stream.Signature(fetch_layout(arch))),
                "bursts": Out(stream.Signature(burst_layout(arch))),
                "words": In(stream.Signature(word_layout(arch))),
                "valid": Out(1),
                "line": Out(line_layout(arch)),
                "clear": In(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        per_line = SEGMENT_ALIGN * 8 // arch.data_bits

        # ---- requests ----
        m.submodules.cutter = cutter = Bursts(arch)
        connect(m, cutter.bursts, flipped(self.bursts))
        layout = fetch_layout(arch)
        m.submodules.queue = queue = SyncFIFOBuffered(width=Shape.cast(layout).width, depth=FETCHES)
        wanted = self.fetches.payload
        lines = Mux(wanted.router, wanted.blocks << 1, wanted.blocks)
        m.d.comb += [
            self.fetches.ready.eq(cutter.ranges.ready & queue.w_rdy),
            cutter.ranges.valid.eq(self.fetches.valid & queue.w_rdy),
            cutter.ranges.payload.address.eq(wanted.address),
            cutter.ranges.payload.words.eq(lines << ceil_log2(per_line)),
            queue.w_en.eq(self.fetches.valid & self.fetches.ready),
            queue.w_data.eq(wanted),
        ]

        # ---- words become lines ----
        fetch = data.View(layout, queue.r_data)
        word_index = Signal(range(per_line))
        line_index = Signal(11)
        text = Signal(SEGMENT_ALIGN * 8)
        end_of_line = word_index == per_line - 1
        last_line = line_index == Mux(fetch.router, fetch.blocks << 1, fetch.blocks) - 1
        taken = Signal()
        m.d.comb += [
            self.words.ready.eq(queue.r_rdy),
            taken.eq(self.words.valid & queue.r_rdy),
            queue.r_en.eq(taken & end_of_line & last_line),
            self.line.mantissas.as_value().eq(text[: ROWS * 8]),
            self.line.exponent.eq(text[ROWS * 8 :][:EXP_BITS].as_signed()),
        ]
        m.d.sync += self.valid.eq(taken & end_of_line)
        with m.If(taken):
            m.d.sync += [
                text.word_select(word_index, arch.data_bits).eq(self.words.payload.data),
                word_index.eq(Mux(end_of_line, 0, word_index + 1)),
            ]
        with m.If(taken & end_of_line):
            m.d.sync += [
                line_index.eq(Mux(last_line, 0, line_index + 1)),
                self.line.half.eq(fetch.half),
                self.line.slot.eq(fetch.slot),
                self.line.token.eq(fetch.token),
                self.line.router.eq(fetch.router),
                self.line.first.eq((fetch.slot == 0) & (line_index == 0)),
                self.line.start.eq(line_index == 0),
                self.line.peak.eq(line_index == fetch.blocks - 1),
                self.line.last.eq(fetch.last & last_line),
            ]
        with m.If(self.clear):
            m.d.sync += self.error.eq(0)
        with m.Elif(taken & self.words.payload.error):
            m.d.sync += self.error.eq(1)
        return m
