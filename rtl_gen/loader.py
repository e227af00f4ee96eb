"""Gathers the vectors of a job from memory: inputs by token, hidden activations job by job."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Shape, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from moe_hw.arch import EXP_BITS, ROWS, SEGMENT_ALIGN, Arch
from rtl_gen.bursts import Bursts
from rtl_gen.bus import burst_layout, word_layout
from rtl_gen.types import fetch_layout, layer_layout, slot_bits, token_bits

FETCHES = 16
"""Fetches that can be on their way."""


def line_layout(arch: Arch) -> data.StructLayout:
    """A block of a vector: its mantissas and exponent.

    ``place`` is its place among the job's vectors, which lie one after the other. ``start`` is the first block of a
    vector, ``last`` the last line of a job; ``counts`` marks those that count for the vector's exponent, ``input`` the
    lines of a token.
    """
    return data.StructLayout(
        {
            "mantissas": data.ArrayLayout(8, ROWS),
            "exponent": signed(EXP_BITS),
            "half": 1,
            "slot": slot_bits(arch),
            "place": range(arch.vector_blocks // 2),
            "token": token_bits(arch),
            "input": 1,
            "start": 1,
            "counts": 1,
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
    layer : In(layer_layout())
        The layer at work.
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
                "layer": In(layer_layout()),
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
        wanted = self.fetches.payload
        layout = data.StructLayout(
            {"of": fetch_layout(arch), "last_block": wanted.blocks.shape(), "last_line": wanted.lines.shape()}
        )
        entry = Signal(layout)
        m.submodules.queue = queue = SyncFIFOBuffered(width=Shape.cast(layout).width, depth=FETCHES)
        m.d.comb += [
            self.fetches.ready.eq(cutter.ranges.ready & queue.w_rdy),
            cutter.ranges.valid.eq(self.fetches.valid & queue.w_rdy),
            cutter.ranges.payload.address.eq(wanted.address),
            cutter.ranges.payload.words.eq(wanted.lines << ceil_log2(per_line)),
            queue.w_en.eq(self.fetches.valid & self.fetches.ready),
            entry.of.eq(wanted),
            entry.last_block.eq(wanted.blocks - 1),
            entry.last_line.eq(wanted.lines - 1),
            queue.w_data.eq(entry),
        ]

        # ---- words become lines ----
        waiting = data.View(layout, queue.r_data)
        fetch = waiting.of
        lane = Signal(per_line, init=1)  # where the next word goes, one of them
        text = Signal(SEGMENT_ALIGN * 8)
        end_of_line = lane[-1]
        taken = Signal()
        end_of_fetch = Signal()
        m.d.comb += [
            self.words.ready.eq(queue.r_rdy),
            taken.eq(self.words.valid & queue.r_rdy),
            queue.r_en.eq(taken & end_of_line & end_of_fetch),
            self.line.mantissas.as_value().eq(text[: ROWS * 8]),
            self.line.exponent.eq(text[ROWS * 8 :][:EXP_BITS].as_signed()),
        ]
        m.d.sync += self.valid.eq(taken & end_of_line)
        with m.If(taken):
            m.d.sync += lane.eq(lane.rotate_left(1))
            for index in range(per_line):
                with m.If(lane[index]):
                    m.d.sync += text.word_select(index, arch.data_bits).eq(self.words.payload.data)

        # ---- where a line belongs ----
        block, place = Signal(11), Signal.like(self.line.place)
        # Hidden activations lie in the order in which they were made: column group by column group, and in each slot
        # by slot.
        # Blocks of a slot that a column group makes, less one: a mask.
        gated, two_layer = (max(1, arch.columns // matrices // ROWS) - 1 for matrices in (2, 1))
        span = Mux(self.layer.gated, gated, two_layer)
        slot, first_block, first_place = Signal.like(fetch.slot), Signal.like(block), Signal.like(place)
        last_block = block == waiting.last_block
        end_of_span = last_block | (block & span == span)
        last_slot = slot == fetch.slot
        m.d.comb += end_of_fetch.eq(Mux(fetch.hidden, last_block & last_slot, block == waiting.last_line))
        with m.If(taken & end_of_line):
            m.d.sync += [
                block.eq(block + 1),
                place.eq(place + 1),
                self.line.half.eq(fetch.half),
                self.line.slot.eq(Mux(fetch.hidden, slot, fetch.slot)),
                self.line.place.eq(place),
                self.line.token.eq(fetch.token),
                self.line.input.eq(~fetch.hidden),
                self.line.start.eq(block == 0),
                self.line.counts.eq(block < fetch.blocks),
                self.line.last.eq(fetch.last & end_of_fetch),
            ]
            with m.If(fetch.hidden & end_of_span):
                with m.If(last_slot):
                    m.d.sync += [slot.eq(0), first_block.eq(block + 1), first_place.eq(block + 1), place.eq(block + 1)]
                with m.Else():
                    following = first_place + fetch.blocks
                    m.d.sync += [slot.eq(slot + 1), first_place.eq(following), place.eq(following)]
                    m.d.sync += block.eq(first_block)
            with m.If(end_of_fetch):
                m.d.sync += [block.eq(0), first_block.eq(0), first_place.eq(0), slot.eq(0)]
                with m.If(fetch.last):
                    m.d.sync += place.eq(0)
        with m.If(self.clear):
            m.d.sync += self.error.eq(0)
        with m.Elif(taken & self.words.payload.error):
            m.d.sync += self.error.eq(1)
        return m
