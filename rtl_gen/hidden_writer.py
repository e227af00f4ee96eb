"""Writes re-quantised hidden activations to memory, for the down pass to load."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moe_hw.arch import ROWS, SEGMENT_ALIGN, Arch
from rtl_gen.bus import range_layout
from rtl_gen.types import address_bits, hidden_block_layout, layer_layout, longest_hidden

VALUE_BITS = 16
"""Bits of an exponent in memory."""


class HiddenWriter(wiring.Component):
    """Makes a line of 64 bytes of each block; blocks of padding are dropped.

    Latency: three cycles to the range; throughput: ``16 / lanes + 4`` cycles a block.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout()), address : In
        The layer at work, and where its hidden activations go (units of 64 bytes).
    blocks : In(stream of hidden_block_layout(arch))
    ranges : Out(stream of range_layout(arch)), values : Out(stream of 32 x lanes bits)
        For the writer.
    job_done : Out(1)
        Pulse: the last block of a job has been handed to the writer.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "address": In(address_bits(arch)),
                "blocks": In(stream.Signature(hidden_block_layout(arch))),
                "ranges": Out(stream.Signature(range_layout(arch))),
                "values": Out(stream.Signature(32 * arch.lanes)),
                "job_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer
        steps = SEGMENT_ALIGN // 4 // arch.lanes
        block = Signal(hidden_block_layout(arch))
        stride = Signal(10)
        product = Signal(address_bits(arch))
        step = Signal(range(steps))
        exponent = Cat(block.exponent, block.exponent[-1].replicate(VALUE_BITS - len(block.exponent)))
        padding = Const(0, 8 * (SEGMENT_ALIGN - ROWS) - VALUE_BITS)
        line = Cat(block.mantissas.as_value(), exponent, padding)
        m.d.sync += [
            stride.eq(longest_hidden(layer)),
            product.eq(block.place * stride),
            self.ranges.payload.address.eq(self.address + product + block.block),
        ]
        m.d.comb += [
            self.ranges.payload.words.eq(SEGMENT_ALIGN * 8 >> exact_log2(arch.data_bits)),
            self.values.payload.eq(line.word_select(step, 32 * arch.lanes)),
        ]
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += self.blocks.ready.eq(1)
                m.d.sync += block.eq(self.blocks.payload)
                with m.If(self.blocks.valid):
                    m.next = "PRODUCT"
            with m.State("PRODUCT"):
                m.next = "ADDRESS"
                with m.If(block.block >= Mux(block.shared, layer.shared_blocks, layer.inter_blocks)):
                    m.d.comb += self.job_done.eq(block.last)
                    m.next = "TAKE"
            with m.State("ADDRESS"):
                m.next = "RANGE"
            with m.State("RANGE"):
                m.d.comb += self.ranges.valid.eq(1)
                with m.If(self.ranges.ready):
                    m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += self.values.valid.eq(1)
                with m.If(self.values.ready):
                    m.d.sync += step.eq(Mux(step == steps - 1, 0, step + 1))
                    with m.If(step == steps - 1):
                        m.d.comb += self.job_done.eq(block.last)
                        m.next = "TAKE"
        return m
