"""Re-quantises hidden activations to blocks of 32 int8 mantissas with an exponent."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moe_hw.arch import EXP_BITS, EXP_MIN, EXP_ZERO, ROWS, Arch
from rtl_gen.arith import Pipeline, round_halves, shift_halves
from rtl_gen.types import hidden_block_layout, hidden_value_layout, slot_bits

SHORTER = 9
"""Bits that the magnitude of an int8 mantissa is shorter than a 16-bit one."""

LATENCY = 42
"""Cycles from a block's last value to the block."""


def value_layout() -> data.StructLayout:
    """A hidden activation in the buffer."""
    return data.StructLayout({"sign": 1, "mantissa": 16, "exponent": signed(EXP_BITS)})


def complete_layout(arch: Arch) -> data.StructLayout:
    """A block in the buffer that waits to be flushed, with its largest exponent."""
    return data.StructLayout({"slot": slot_bits(arch), "block": 10, "exponent": signed(EXP_BITS), "last": 1})


class Requant(wiring.Component):
    """Collects each slot's blocks of 32 values, and flushes them with the block's common exponent.

    The buffer has two halves for every slot, for blocks of even and odd number: while one is flushed the next block
    fills the other. A value waits if its half is not flushed yet.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    values : In(stream of hidden_value_layout(arch))
        A slot's neurons in order, from 0; slots may alternate. Zeros have exponent ``EXP_MIN``.
    blocks : Out(stream of hidden_block_layout(arch))
        Blocks in the order in which they were complete. Latency: ``LATENCY``; throughput: a value a cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "values": In(stream.Signature(hidden_value_layout(arch))),
                "blocks": Out(stream.Signature(hidden_block_layout(arch))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        halves = 2 * self.arch.max_tokens
        m.submodules.buffer = buffer = Memory(shape=value_layout(), depth=halves * ROWS, init=[])
        # With a place for every half it cannot be full.
        m.submodules.complete = complete = SyncFIFOBuffered(width=complete_layout(self.arch).size, depth=halves)
        pending = Signal(halves)
        self._fill(m, buffer, complete, pending)
        self._flush(m, buffer, complete, pending)
        return m

    def _fill(self, m: Module, buffer: Memory, complete: SyncFIFOBuffered, pending: Signal) -> None:
        """Stores values and keeps the largest exponent of every slot's block."""
        value = self.values.payload
        place, block = value.neuron[:5], value.neuron[5:]
        half = Cat(block[0], value.slot)
        write = buffer.write_port()
        m.d.comb += [
            self.values.ready.eq(~pending.bit_select(half, 1)),
            write.en.eq(self.values.valid & self.values.ready),
            write.addr.eq(Cat(place, half)),
            write.data.sign.eq(value.sign),
            write.data.mantissa.eq(value.mantissa),
            write.data.exponent.eq(value.exponent),
        ]

        # Read and written in one cycle: values of a slot follow each other.
        m.submodules.largest = largest = Memory(shape=signed(EXP_BITS), depth=self.arch.max_tokens, init=[])
        before, after = largest.read_port(domain="comb"), largest.write_port()
        larger = (place == 0) | (value.exponent > before.data)
        m.d.comb += [
            before.addr.eq(value.slot),
            after.addr.eq(value.slot),
            after.en.eq(write.en),
            after.data.eq(Mux(larger, value.exponent, before.data)),
        ]

        entry = data.View(complete_layout(self.arch), complete.w_data)
        m.d.comb += [
            complete.w_en.eq(write.en & (place == ROWS - 1)),
            entry.slot.eq(value.slot),
            entry.block.eq(block),
            entry.exponent.eq(after.data),
            entry.last.eq(value.last),
        ]
        with m.If(complete.w_en):
            m.d.sync += pending.bit_select(half, 1).eq(1)

    def _flush(self, m: Module, buffer: Memory, complete: SyncFIFOBuffered, pending: Signal) -> None:
        """Reads complete blocks and shifts their mantissas to the common exponent."""
        enable = Signal()
        m.d.comb += enable.eq(~self.blocks.valid | self.blocks.ready)
        entry = data.View(complete_layout(self.arch), complete.r_data)
        half = Cat(entry.block[0], entry.slot)
        place = Signal(range(ROWS))
        read = buffer.read_port()
        m.d.comb += [
            read.en.eq(enable),
            read.addr.eq(Cat(place, half)),
            complete.r_en.eq(enable & (place == ROWS - 1)),
        ]
        with m.If(enable & complete.r_rdy):
            m.d.sync += place.eq(place + 1)
        with m.If(complete.r_en & complete.r_rdy):
            m.d.sync += pending.bit_select(half, 1).eq(0)

        p = Pipeline(m, complete.r_rdy, enable)
        p.stage(slot=entry.slot, block=entry.block, largest=entry.exponent, last=entry.last, complete=place == ROWS - 1)
        p.stage(sign=read.data.sign, mantissa=read.data.mantissa, exponent=read.data.exponent)
        p.stage(amount=SHORTER + p.largest - p.exponent, exponent=None)
        p.stage(amount=Mux(p.amount > 31, 31, p.amount)[:5])
        p.stage(halves=shift_halves(p.mantissa, p.amount), mantissa=None, amount=None)
        p.stage(magnitude=round_halves(p.halves)[:8], halves=None)
        self._collect(m, p, enable)

    def _collect(self, m: Module, p: Pipeline, enable: Value) -> None:
        """Shifts 32 mantissas into a block."""
        block = self.blocks.payload
        clipped = Mux(p.magnitude[7], 127, p.magnitude)
        mantissa = Mux(p.sign, -clipped, clipped)[:8]
        with m.If(enable):
            m.d.sync += self.blocks.valid.eq(p.valid & p.complete)
        with m.If(enable & p.valid):
            m.d.sync += [
                block.mantissas.eq(Cat(block.mantissas.as_value()[8:], mantissa)),
                block.slot.eq(p.slot),
                block.block.eq(p.block),
                block.exponent.eq(Mux(p.largest == EXP_MIN, EXP_ZERO, p.largest + SHORTER)),
                block.last.eq(p.last),
            ]
