"""The vector buffer's write side and exponents; its mantissas lie in the array's row banks."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from moe_hw.arch import EXP_BITS, ROWS, Arch
from rtl_gen.loader import line_layout
from rtl_gen.types import slot_bits, token_bits


class ExponentRead(wiring.Signature):
    """A read port of the exponents, from the reader's side; the answers follow by one cycle.

    Members:
        address: a block's place in the vector buffer.
        half, slot: the vector.
        token: the token whose choice is worked on.
        block_exponent: e_b of the block.
        vector_exponent: E of the vector.
        token_exponent: E of the token.
    """

    def __init__(self, arch: Arch):
        super().__init__(
            {
                "address": Out(bits_for(arch.vector_blocks - 1)),
                "half": Out(1),
                "slot": Out(slot_bits(arch)),
                "token": Out(token_bits(arch)),
                "block_exponent": In(signed(EXP_BITS)),
                "vector_exponent": In(signed(EXP_BITS)),
                "token_exponent": In(signed(EXP_BITS)),
            }
        )


class VectorBuffer(wiring.Component):
    """Places the lines of a job's vectors in its half of the row banks, and keeps their exponents.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    valid : In(1), line : In(line_layout(arch))
        Blocks; of a vector in order.
    loaded : Out(1)
        Pulse: all vectors of a job are in place.
    read : In(ExponentRead(arch))
        A token's exponent is known once it has been part of a job.
    x_write, x_address, x : Out
        Write port of the row banks, as in ``Array``.

    Latency: two cycles to ``loaded``, one on ``read``; throughput: a block a cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "valid": In(1),
                "line": In(line_layout(arch)),
                "loaded": Out(1),
                "read": In(ExponentRead(arch)),
                "x_write": Out(1),
                "x_address": Out(bits_for(arch.vector_blocks - 1)),
                "x": Out(data.ArrayLayout(8, ROWS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        line = self.line

        def memory(name: str, depth: int) -> Memory:
            m.submodules[name] = memory = Memory(shape=signed(EXP_BITS), depth=depth, init=[])
            return memory

        blocks, vectors, tokens = (
            memory("blocks", arch.vector_blocks),
            memory("vectors", 2 * arch.slots),
            memory("tokens", arch.max_tokens),
        )
        block_read, vector_read, token_read = blocks.read_port(), vectors.read_port(), tokens.read_port()
        block_write, vector_write, token_write = blocks.write_port(), vectors.write_port(), tokens.write_port()

        def vector(half: Signal, slot: Signal) -> Cat:
            return Cat(slot[: exact_log2(arch.slots)], half)

        m.d.comb += [
            block_read.addr.eq(self.read.address),
            vector_read.addr.eq(vector(self.read.half, self.read.slot)),
            token_read.addr.eq(self.read.token),
            self.read.block_exponent.eq(block_read.data),
            self.read.vector_exponent.eq(vector_read.data),
            self.read.token_exponent.eq(token_read.data),
        ]

        # The largest exponent of each slot's vector so far; lines of several slots may alternate.
        m.submodules.largest = largest = Memory(shape=signed(EXP_BITS), depth=arch.slots, init=[])
        stored, update = largest.read_port(domain="comb"), largest.write_port()
        counts = Signal()
        counted = Signal.like(line)  # the line of a cycle ago
        before, peak, last_peak = Signal(signed(EXP_BITS)), Signal(signed(EXP_BITS)), Signal(signed(EXP_BITS))
        same_slot = Signal()  # as the line before it, whose peak was not known when this one's was read
        m.d.comb += [
            stored.addr.eq(line.slot),
            update.data.eq(last_peak),
            vector_write.en.eq(update.en),
            vector_write.data.eq(last_peak),
            token_write.data.eq(last_peak),
        ]
        largest_before = Mux(same_slot, last_peak, before)
        larger = counted.exponent > largest_before
        m.d.comb += peak.eq(Mux(counted.start | larger, counted.exponent, largest_before))
        m.d.sync += [
            counts.eq(self.valid & line.counts),
            counted.eq(line),
            # The peak of two lines ago is being stored.
            before.eq(Mux(update.en & (line.slot == update.addr), last_peak, stored.data)),
            same_slot.eq(counts & (line.slot == counted.slot)),
            last_peak.eq(peak),
            update.en.eq(counts),
            update.addr.eq(counted.slot),
        ]
        m.d.comb += [
            self.x_write.eq(self.valid),
            self.x_address.eq(Cat(line.place, line.half)),
            self.x.eq(line.mantissas),
            block_write.en.eq(self.valid),
            block_write.addr.eq(self.x_address),
            block_write.data.eq(line.exponent),
        ]
        # Two cycles later, for finding the largest one takes two.
        ended = Signal()
        m.d.sync += [
            vector_write.addr.eq(vector(counted.half, counted.slot)),
            token_write.en.eq(counts & counted.input),
            token_write.addr.eq(counted.token),
            ended.eq(self.valid & line.last),
            self.loaded.eq(ended),
        ]
        return m
