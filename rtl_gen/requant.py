"""Re-quantises hidden activations to blocks of 32 int8 mantissas with an exponent."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moe_hw.arch import EXP_BITS, EXP_MIN, EXP_ZERO, ROWS, Arch
from rtl_gen.arith import Pipeline, round_halves, shift_halves
from rtl_gen.types import hidden_block_layout, hidden_value_layout, hidden_values_layout, slot_bits

SHORTER = 9
"""Bits that the magnitude of an int8 mantissa is shorter than a 16-bit one."""

LATENCY = 11
"""Cycles from a block's last value to the block, beyond one for each ``lanes`` values of it."""


def complete_layout(arch: Arch) -> data.StructLayout:
    """A block in the buffer that waits to be flushed, with its largest exponent."""
    return data.StructLayout(
        {
            "slot": slot_bits(arch),
            "unused": 1,
            "shared": 1,
            "block": 11,
            "exponent": signed(EXP_BITS),
            "last": 1,
        }
    )


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
    values : In(stream of hidden_values_layout(arch))
        A slot's neurons in order, from 0; slots may alternate. Zeros have exponent ``EXP_MIN``.
    blocks : Out(stream of hidden_block_layout(arch))
        Blocks in the order in which they were complete. Latency: ``32 / lanes + LATENCY``; throughput: ``lanes``
        values a cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "values": In(stream.Signature(hidden_values_layout(arch))),
                "blocks": Out(stream.Signature(hidden_block_layout(arch))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes = self.arch.lanes
        self._steps = ROWS // lanes  # words of a block
        halves = 2 * self.arch.slots
        word = data.ArrayLayout(hidden_value_layout(), lanes)
        m.submodules.buffer = buffer = Memory(shape=word, depth=halves * self._steps, init=[])
        # With a place for every half it cannot be full.
        m.submodules.complete = complete = SyncFIFOBuffered(width=complete_layout(self.arch).size, depth=halves)
        pending = Signal(halves)
        self._fill(m, buffer, complete, pending)
        self._flush(m, buffer, complete, pending)
        return m

    def _fill(self, m: Module, buffer: Memory, complete: SyncFIFOBuffered, pending: Signal) -> None:
        """Stores values and keeps the largest exponent of every slot's block."""
        # Stage 1 holds the values while the largest exponent of the lanes is found.
        held = Signal()
        value = Signal(hidden_values_layout(self.arch))
        peak = Signal(signed(EXP_BITS))
        go = Signal()
        peaks = [lane.exponent for lane in self.values.payload.values]
        while len(peaks) > 1:
            peaks = [Mux(a > b, a, b) for a, b in zip(peaks[::2], peaks[1::2], strict=True)]
        # A half's state is looked up on the way into stage 1, for the pipeline that waits on it is long.
        free = Signal()
        m.d.comb += self.values.ready.eq(~held | go)
        with m.If(self.values.ready):
            m.d.sync += [held.eq(self.values.valid), value.eq(self.values.payload), peak.eq(peaks[0])]

        place, block = value.neuron[exact_log2(self.arch.lanes) : 5], value.neuron[5:]
        half = Cat(block[0], value.slot)
        incoming = self.values.payload
        half_next = Mux(self.values.ready, Cat(incoming.neuron[5], incoming.slot), half)
        write = buffer.write_port()
        m.d.comb += [
            go.eq(held & free),
            write.en.eq(go),
            write.addr.eq(Cat(place, half)),
            write.data.eq(value["values"]),
        ]

        # Read and written in one cycle: values of a slot follow each other.
        m.submodules.largest = largest = Memory(shape=signed(EXP_BITS), depth=self.arch.slots, init=[])
        before, after = largest.read_port(domain="comb"), largest.write_port()
        larger = (place == 0) | (peak > before.data)
        m.d.comb += [
            before.addr.eq(value.slot),
            after.addr.eq(value.slot),
            after.en.eq(go),
            after.data.eq(Mux(larger, peak, before.data)),
        ]

        entry = data.View(complete_layout(self.arch), complete.w_data)
        m.d.comb += [
            complete.w_en.eq(go & (place == self._steps - 1)),
            entry.slot.eq(value.slot),
            entry.unused.eq(value.unused),
            entry.shared.eq(value.shared),
            entry.block.eq(block),
            entry.exponent.eq(after.data),
            entry.last.eq(value.last),
        ]
        flushed = data.View(complete_layout(self.arch), complete.r_data)
        becomes_free = complete.r_en & complete.r_rdy & (half_next == Cat(flushed.block[0], flushed.slot))
        becomes_pending = complete.w_en & (half_next == half)
        m.d.sync += free.eq((~pending.bit_select(half_next, 1) | becomes_free) & ~becomes_pending)
        with m.If(complete.w_en):
            m.d.sync += pending.bit_select(half, 1).eq(1)

    def _flush(self, m: Module, buffer: Memory, complete: SyncFIFOBuffered, pending: Signal) -> None:
        """Reads complete blocks and shifts their mantissas to the common exponent."""
        enable = Signal()
        m.d.comb += enable.eq(~self.blocks.valid | self.blocks.ready)
        entry = data.View(complete_layout(self.arch), complete.r_data)
        half = Cat(entry.block[0], entry.slot)
        place = Signal(range(self._steps))
        last_place = place == self._steps - 1
        read = buffer.read_port()
        m.d.comb += [
            read.en.eq(enable),
            read.addr.eq(Cat(place, half)),
            complete.r_en.eq(enable & last_place),
        ]
        with m.If(enable & complete.r_rdy):
            m.d.sync += place.eq(Mux(last_place, 0, place + 1))
        with m.If(complete.r_en & complete.r_rdy):
            m.d.sync += pending.bit_select(half, 1).eq(0)

        lanes = []
        for lane in range(self.arch.lanes):
            p = Pipeline(m, complete.r_rdy, enable)
            which = {}
            if lane == 0:
                which = {"unused": entry.unused, "shared": entry.shared, "block": entry.block, "last": entry.last}
                which["complete"] = last_place
            p.stage(largest=entry.exponent, **which)
            value = read.data[lane]
            p.stage(sign=value.sign, mantissa=value.mantissa, exponent=value.exponent)
            p.stage(amount=SHORTER + p.largest - p.exponent, exponent=None)
            p.stage(amount=Mux(p.amount > 31, 31, p.amount)[:5])
            p.stage(halves=shift_halves(p.mantissa, p.amount), mantissa=None, amount=None)
            p.stage(magnitude=round_halves(p.halves)[:8], halves=None)
            lanes.append(p)
        self._collect(m, lanes, enable)

    def _collect(self, m: Module, lanes: list[Pipeline], enable: Value) -> None:
        """Shifts 32 mantissas into a block."""
        block = self.blocks.payload
        mantissas = []
        for p in lanes:
            clipped = Mux(p.magnitude[7], 127, p.magnitude)
            mantissas.append(Mux(p.sign, -clipped, clipped)[:8])
        p = lanes[0]
        with m.If(enable):
            m.d.sync += self.blocks.valid.eq(p.valid & p.complete)
        with m.If(enable & p.valid):
            m.d.sync += [
                block.mantissas.eq(Cat(block.mantissas.as_value()[8 * len(lanes) :], *mantissas)),
                block.unused.eq(p.unused),
                block.shared.eq(p.shared),
                block.block.eq(p.block),
                block.exponent.eq(Mux(p.largest == EXP_MIN, EXP_ZERO, p.largest + SHORTER)),
                block.last.eq(p.last),
            ]
