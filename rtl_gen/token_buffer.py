"""The token buffer's write side and exponents; its mantissas lie in the array's row banks."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import EXP_BITS, ROWS, Arch
from rtl_gen.types import hidden_block_layout, layer_layout, slot_bits


def piece_bytes(arch: Arch) -> int:
    """Mantissas that the loader delivers at a time."""
    return min(arch.data_bits // 8, ROWS)


class ExponentRead(wiring.Signature):
    """A read port of the exponents, from the reader's side; the answers follow by one cycle.

    Members:
        address: a block's place in the token buffer (of an input's upper half, or a hidden block).
        token, slot, hidden: the vector: token number ``token``, or the hidden vector of ``slot``.
        block_exponent: e_b of the block.
        vector_exponent: E of the vector.
        token_exponent: E of the token.
    """

    def __init__(self, arch: Arch):
        super().__init__(
            {
                "address": Out(bits_for(arch.token_blocks - 1)),
                "token": Out(slot_bits(arch)),
                "slot": Out(slot_bits(arch)),
                "hidden": Out(1),
                "block_exponent": In(signed(EXP_BITS)),
                "vector_exponent": In(signed(EXP_BITS)),
                "token_exponent": In(signed(EXP_BITS)),
            }
        )


class TokenBuffer(wiring.Component):
    """Places inputs and hidden blocks in the row banks and keeps their exponents.

    From block 0: the upper halves of all inputs, token by token, the lower halves, then the hidden vectors, slot by
    slot.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
    mantissas : In(stream of piece_bytes(arch) x 8 bits)
        Input record's halves, in order; restarted by ``restart``.
    exponents : In(stream of 12 bits, signed)
        Exponents of the inputs, in order.
    restart : In(1)
        Pulse: a new batch's inputs follow.
    loaded : Out(1)
        All exponents of the batch are in place.
    blocks : In(stream of hidden_block_layout(arch)), hidden_stride : In(10)
        Hidden blocks and the length of a hidden vector in blocks.
    hidden_ready : Out(1)
        Pulse: the last hidden block of a job is in place.
    read : In(ExponentRead(arch))
    x_write, x_address, x : Out
        Write port of the row banks, as in ``Array``.

    Latency: none for inputs, three cycles for a hidden block, one on ``read``; throughput: a piece and an exponent a
    cycle, a hidden block every four cycles.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "mantissas": In(stream.Signature(8 * piece_bytes(arch))),
                "exponents": In(stream.Signature(signed(EXP_BITS))),
                "restart": In(1),
                "loaded": Out(1),
                "blocks": In(stream.Signature(hidden_block_layout(arch))),
                "hidden_stride": In(10),
                "hidden_ready": Out(1),
                "read": In(ExponentRead(arch)),
                "x_write": Out(ROWS),
                "x_address": Out(bits_for(arch.token_blocks - 1)),
                "x": Out(data.ArrayLayout(8, ROWS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        address_bits = bits_for(arch.token_blocks - 1)

        m.submodules.block_memory = block_memory = Memory(shape=signed(EXP_BITS), depth=arch.token_blocks, init=[])
        m.submodules.token_memory = token_memory = Memory(shape=signed(EXP_BITS), depth=arch.max_tokens, init=[])
        m.submodules.hidden_memory = hidden_memory = Memory(shape=signed(EXP_BITS), depth=arch.max_tokens, init=[])
        block_write, token_write, hidden_write = (
            memory.write_port() for memory in (block_memory, token_memory, hidden_memory)
        )
        block_read, token_read, hidden_read = (
            memory.read_port() for memory in (block_memory, token_memory, hidden_memory)
        )
        hidden = Signal()
        m.d.sync += hidden.eq(self.read.hidden)
        m.d.comb += [
            block_read.addr.eq(self.read.address),
            token_read.addr.eq(self.read.token),
            hidden_read.addr.eq(self.read.slot),
            self.read.block_exponent.eq(block_read.data),
            self.read.token_exponent.eq(token_read.data),
            self.read.vector_exponent.eq(Mux(hidden, hidden_read.data, token_read.data)),
        ]

        # Hidden blocks: stage 1 multiplies and reads the vector's exponent so far, stage 2 adds, stage 3 writes.
        stage_1, stage_2, stage_3 = Signal(), Signal(), Signal()
        block = Signal(hidden_block_layout(arch))
        vector_offset = Signal(address_bits)
        inputs_end = Signal(address_bits)
        hidden_place = Signal(address_bits)
        peak_read = hidden_memory.read_port()
        m.d.comb += [
            self.blocks.ready.eq(~(stage_1 | stage_2 | stage_3)),
            peak_read.addr.eq(block.slot),
            hidden_write.en.eq(stage_2),
            hidden_write.addr.eq(block.slot),
            hidden_write.data.eq(
                Mux((block.block != 0) & (peak_read.data > block.exponent), peak_read.data, block.exponent)
            ),
            self.hidden_ready.eq(stage_3 & block.last),
        ]
        with m.If(self.blocks.ready):
            m.d.sync += block.eq(self.blocks.payload)
        m.d.sync += [
            stage_1.eq(self.blocks.valid & self.blocks.ready),
            stage_2.eq(stage_1),
            stage_3.eq(stage_2),
            vector_offset.eq(block.slot * self.hidden_stride),
            inputs_end.eq((self.layer.tokens * self.layer.hidden_blocks) << 1),
            hidden_place.eq(inputs_end + vector_offset + block.block),
        ]

        # Inputs: the order of the record is the order of the places.
        piece = piece_bytes(arch)
        pieces = ROWS // piece
        index = Signal(range(pieces))
        place = Signal(address_bits)
        m.d.comb += self.mantissas.ready.eq(~stage_3)
        with m.If(stage_3):
            m.d.comb += [
                self.x_write.eq(-1),
                self.x_address.eq(hidden_place),
                self.x.as_value().eq(block.mantissas.as_value()),
            ]
        with m.Else():
            m.d.comb += [
                self.x_address.eq(place),
                self.x.as_value().eq(self.mantissas.payload.replicate(pieces)),
            ]
            with m.If(self.mantissas.valid):
                m.d.comb += self.x_write.word_select(index, piece).eq(-1)
                m.d.sync += index.eq(index + 1)
                with m.If(index == pieces - 1):
                    m.d.sync += [index.eq(0), place.eq(place + 1)]

        exponent_place = Signal(address_bits)
        token_block = Signal(10)
        token = Signal(bits_for(arch.max_tokens))
        largest = Signal(signed(EXP_BITS))
        value = self.exponents.payload
        new_largest = Signal(signed(EXP_BITS))
        end_of_token = token_block == self.layer.hidden_blocks - 1
        m.d.comb += [
            self.loaded.eq(token == self.layer.tokens),
            self.exponents.ready.eq(~stage_3),
            new_largest.eq(Mux((token_block == 0) | (value > largest), value, largest)),
            block_write.en.eq(stage_3 | self.exponents.valid),
            block_write.addr.eq(Mux(stage_3, hidden_place, exponent_place)),
            block_write.data.eq(Mux(stage_3, block.exponent, value)),
            token_write.en.eq(self.exponents.valid & self.exponents.ready & end_of_token),
            token_write.addr.eq(token),
            token_write.data.eq(new_largest),
        ]
        with m.If(self.exponents.valid & self.exponents.ready):
            m.d.sync += [
                exponent_place.eq(exponent_place + 1),
                largest.eq(new_largest),
                token_block.eq(Mux(end_of_token, 0, token_block + 1)),
                token.eq(token + end_of_token),
            ]
        with m.If(self.restart):
            m.d.sync += [index.eq(0), place.eq(0), exponent_place.eq(0), token_block.eq(0), token.eq(0)]
        return m
