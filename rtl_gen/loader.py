"""Reads the input record of a batch and hands mantissas and exponents to the token buffer."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from moe_hw.arch import EXP_BITS, ROWS, SEGMENT_ALIGN, Arch
from rtl_gen.bus import range_layout, word_layout
from rtl_gen.token_buffer import piece_bytes
from rtl_gen.types import address_bits, layer_layout

MANTISSA_BYTES = 2 * ROWS
"""Bytes of an input block, both halves."""

EXPONENT_BITS = 16
"""Bits of an exponent in memory."""


class Loader(wiring.Component):
    """Reads an input record (``docs/memory-image.md`` section 3).

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
    start : In(1), address : In
        Pulse: read the record at ``address`` (units of 64 bytes).
    ranges : Out(stream of range_layout(arch)), words : In(stream of word_layout(arch))
        Memory.
    mantissas, exponents : Out
        As in ``TokenBuffer``.
    busy : Out(1)
        From ``start`` until the last word has been handed on.
    error : Out(1)
        The memory answered an error; sticky until the next ``start``.

    Latency: two cycles from ``start`` to the range, one from a word to its first piece; throughput: a piece (32
    mantissas or one exponent) a cycle, and a cycle for each bus word.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "start": In(1),
                "address": In(address_bits(arch)),
                "ranges": Out(stream.Signature(range_layout(arch))),
                "words": In(stream.Signature(word_layout(arch))),
                "mantissas": Out(stream.Signature(8 * piece_bytes(arch))),
                "exponents": Out(stream.Signature(signed(EXP_BITS))),
                "busy": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        word_bytes = arch.data_bits // 8
        block_bits = bits_for(arch.token_blocks)
        mantissa_pieces = word_bytes // piece_bytes(arch)
        exponent_pieces = arch.data_bits // EXPONENT_BITS

        blocks = Signal(block_bits)
        mantissa_words = blocks << ceil_log2(MANTISSA_BYTES // word_bytes)
        exponent_words = (blocks + exponent_pieces - 1) >> ceil_log2(exponent_pieces)
        mantissa_words_left = Signal(block_bits + ceil_log2(SEGMENT_ALIGN))
        exponents_left = Signal(block_bits)

        # The word at hand is shifted down piece by piece.
        word = Signal(arch.data_bits)
        held = Signal()
        pieces_left = Signal(range(exponent_pieces + 1))
        in_mantissas = mantissa_words_left != 0
        m.d.comb += [
            self.mantissas.payload.eq(word[: 8 * piece_bytes(arch)]),
            self.mantissas.valid.eq(held & in_mantissas),
            self.exponents.payload.eq(word[:EXP_BITS]),
            self.exponents.valid.eq(held & ~in_mantissas & (exponents_left != 0)),
        ]
        step = Signal()
        last_piece = pieces_left == 1
        m.d.comb += step.eq(
            held
            & Mux(in_mantissas, self.mantissas.ready, self.exponents.ready | (exponents_left == 0))
        )
        with m.If(step):
            m.d.sync += [
                word.eq(Mux(in_mantissas, word >> (8 * piece_bytes(arch)), word >> EXPONENT_BITS)),
                pieces_left.eq(pieces_left - 1),
            ]
            with m.If(in_mantissas):
                m.d.sync += mantissa_words_left.eq(mantissa_words_left - last_piece)
            with m.Elif(exponents_left != 0):
                m.d.sync += exponents_left.eq(exponents_left - 1)
            with m.If(last_piece):
                m.d.sync += held.eq(0)

        with m.FSM():
            with m.State("idle"):
                m.d.sync += blocks.eq(self.layer.tokens * self.layer.hidden_blocks)
                with m.If(self.start):
                    m.d.comb += self.busy.eq(1)
                    m.d.sync += [self.ranges.payload.address.eq(self.address), self.error.eq(0)]
                    m.next = "count"
            with m.State("count"):
                m.d.comb += self.busy.eq(1)
                m.d.sync += [
                    mantissa_words_left.eq(mantissa_words),
                    exponents_left.eq(blocks),
                    self.ranges.payload.words.eq(mantissa_words + exponent_words),
                    self.ranges.valid.eq(1),
                ]
                m.next = "read"
            with m.State("read"):
                m.d.comb += [self.busy.eq(1), self.words.ready.eq(~held)]
                with m.If(self.ranges.ready):
                    m.d.sync += self.ranges.valid.eq(0)
                with m.If(self.words.valid & self.words.ready):
                    m.d.sync += [
                        word.eq(self.words.payload.data),
                        held.eq(1),
                        # The first exponent word comes when the last mantissa piece has left.
                        pieces_left.eq(Mux(in_mantissas, mantissa_pieces, exponent_pieces)),
                        self.error.eq(self.error | self.words.payload.error),
                    ]
                with m.If(~held & ~in_mantissas & (exponents_left == 0)):
                    m.next = "idle"
        return m
