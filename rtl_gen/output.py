"""Sends a chunk's sums to memory as float32, and clears the combine buffer."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from moe_hw.arch import ROWS, SEGMENT_ALIGN, Arch
from rtl_gen.arith import Pipeline, align, bit_length, magnitude
from rtl_gen.bus import range_layout
from rtl_gen.combine import SumRead
from rtl_gen.types import address_bits, combine_exponent, groups_of, layer_layout

LARGEST_FLOAT = 0x7F7FFFFF
"""Bits of the largest finite float32."""

QUEUE = 16
"""Values that can be under way or wait: more than the conversion and the queue have stages."""

BLOCK_UNITS = 4 * ROWS // SEGMENT_ALIGN
"""A block of outputs, in units of 64 bytes."""


class Output(wiring.Component):
    """Visits the tokens' sums in order; a sum is zero after it has been sent.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
        The layer at work, stable from ``restart`` to the last output.
    address : In
        Where the outputs go, float32 ``[tokens, 32 * hidden_blocks]``; in units of 64 bytes.
    restart : In(1), clearing : Out(1)
        Pulse: a new batch begins with the first chunk. All its sums are cleared, ``lanes`` a cycle, while ``clearing``.
    store : In(1), stored : Out(1)
        Pulse: send the chunk. Pulse: all of it has been read, its last values are on their way; the next chunk follows.
    read : Out(SumRead(arch))
    ranges : Out(stream of range_layout(arch)), values : Out(stream of 32 x lanes bits)
        A range for each token's part of the chunk, and its outputs, ``lanes`` a cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "address": In(address_bits(arch)),
                "restart": In(1),
                "clearing": Out(1),
                "store": In(1),
                "stored": Out(1),
                "read": Out(SumRead(arch)),
                "ranges": Out(stream.Signature(range_layout(arch))),
                "values": Out(stream.Signature(32 * arch.lanes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer
        lanes = exact_log2(arch.lanes)

        # ---- the chunk at hand ----
        base = Signal(10)  # its first block
        left = Signal(10)
        blocks = Signal(10)
        words = Signal(16)  # of a token, in the combine buffer
        steps = Signal(16)  # of a token, to visit
        clears = Signal()
        row = Signal(address_bits(arch))  # of a token's outputs in memory
        m.d.comb += left.eq(layer.hidden_blocks - base)
        m.d.sync += [
            blocks.eq(Mux(left < layer.chunk_blocks, left, layer.chunk_blocks)),
            words.eq(groups_of(arch, layer.chunk_blocks) << exact_log2(arch.columns // arch.lanes)),
            steps.eq(Mux(clears, words, blocks << ceil_log2(ROWS >> lanes))),
        ]

        # ---- the walk ----
        token = Signal.like(layer.tokens)
        first = Signal.like(self.read.address)
        step = Signal.like(steps)
        visit, end_of_token = Signal(), Signal()
        # Registers: much depends on them.
        last_token = Signal()
        end_of_chunk = end_of_token & last_token
        step_next = Mux(visit, Mux(end_of_token, 0, step + 1), step)
        token_next = Mux(visit & end_of_token, Mux(last_token, 0, token + 1), token)
        m.d.sync += [
            step.eq(step_next),
            token.eq(token_next),
            end_of_token.eq(step_next == steps - 1),
            last_token.eq(token_next == layer.tokens - 1),
        ]
        m.d.sync += [
            self.clearing.eq(clears),
            self.read.address.eq(first + step),
            self.read.enable.eq(visit),
            self.read.token.eq(token),
        ]
        with m.If(visit & end_of_token):
            m.d.sync += first.eq(Mux(end_of_chunk, 0, first + words))

        # A batch in which no token chose an expert asks for its chunk while the sums are still being cleared.
        asked = Signal()
        with m.If(self.store):
            m.d.sync += asked.eq(1)

        # The conversion never stops: it begins nothing that has no room at its end. Room is known a cycle late.
        m.submodules.queue = queue = SyncFIFOBuffered(width=len(self.values.payload), depth=QUEUE)
        room = Signal(range(QUEUE + 1), init=QUEUE)
        has_room, sending = Signal(), Signal()
        m.d.sync += [has_room.eq(room > 1), room.eq(room + (self.values.valid & self.values.ready) - sending)]
        m.d.comb += [
            self.values.valid.eq(queue.r_rdy),
            self.values.payload.eq(queue.r_data),
            queue.r_en.eq(self.values.ready),
            self.ranges.payload.address.eq(row + base * BLOCK_UNITS),
            self.ranges.payload.words.eq((blocks * (32 * ROWS)) >> exact_log2(arch.data_bits)),
        ]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.restart):
                    m.d.sync += base.eq(0)
                    m.next = "SETTLE"
                with m.Elif(self.store | asked):
                    m.d.sync += [asked.eq(0), row.eq(self.address)]
                    m.next = "COUNT"
            # The counts of a new layer take two cycles.
            with m.State("SETTLE"):
                m.d.comb += clears.eq(1)
                m.next = "SETTLED"
            with m.State("SETTLED"):
                m.d.comb += clears.eq(1)
                m.next = "CLEAR"
            with m.State("CLEAR"):
                m.d.comb += [clears.eq(1), visit.eq(1)]
                with m.If(end_of_chunk):
                    m.next = "IDLE"
            with m.State("COUNT"):
                m.next = "RANGE"
            with m.State("RANGE"):
                m.d.comb += self.ranges.valid.eq(1)
                with m.If(self.ranges.ready):
                    m.d.sync += row.eq(row + layer.hidden_blocks * BLOCK_UNITS)
                    m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += [sending.eq(has_room), visit.eq(has_room)]
                with m.If(visit & end_of_token):
                    m.next = "RANGE"
                    with m.If(end_of_chunk):
                        m.next = "LAST"
            with m.State("LAST"):
                m.d.comb += self.stored.eq(1)
                m.d.sync += base.eq(base + layer.chunk_blocks)
                m.next = "IDLE"

        for lane in range(arch.lanes):
            p = Pipeline(m, sending)
            for _ in range(4):
                p.stage()
            p.stage(word=self.read.sums[lane], exponent=combine_exponent(layer, self.read.exponent))
            self._convert(p)
            m.d.comb += queue.w_data.word_select(lane, 32).eq(p.bits)
            if lane == 0:
                m.d.comb += queue.w_en.eq(p.valid)
        return m

    def _convert(self, p: Pipeline) -> None:
        """``word * 2**exponent`` to float32."""
        p.stage(negative=p.word[-1], word=magnitude(p.word))
        p.stage(length=bit_length(p.word))
        p.stage(aligned=align(p.word, p.length), exponent=p.exponent + p.length + 126, word=None, length=None)
        kept, half, rest = p.aligned[-24:], p.aligned[-25], p.aligned[:-25]
        p.stage(zero=~kept[-1], rounded=kept + (half & (rest.any() | kept[0])), aligned=None)
        p.stage(zero=p.zero, fraction=p.rounded[:23], exponent=p.exponent + p.rounded[24], rounded=None)
        finite = Mux(p.exponent > 254, LARGEST_FLOAT, Cat(p.fraction, p.exponent[:8]))[:31]
        p.stage(
            bits=Mux(p.zero | (p.exponent < 1), 0, Cat(finite, p.negative)),
            zero=None,
            fraction=None,
            exponent=None,
            negative=None,
        )
