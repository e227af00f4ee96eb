"""Writes re-quantised hidden activations to memory, for the down pass to load."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moe_hw.arch import ROWS, SEGMENT_ALIGN, Arch
from rtl_gen.bus import range_layout
from rtl_gen.types import address_bits, hidden_block_layout, layer_layout, longest_hidden

VALUE_BITS = 16
"""Bits of an exponent in memory."""

LINES = 4
"""Lines that can wait for the writer: so many that it always has the next one's address."""


def line_layout() -> data.StructLayout:
    """What is not zero of a line; ``padding`` marks a block that is not written, ``last`` the last of a job."""
    return data.StructLayout({"text": 8 * ROWS + VALUE_BITS, "padding": 1, "last": 1})


class HiddenWriter(wiring.Component):
    """Makes a line of 64 bytes of each block; blocks of padding are dropped.

    Latency: five cycles to the range; throughput: ``16 / lanes`` cycles a block, at least four.

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
        padding = Signal()
        stride = Signal(10)
        product = Signal(address_bits(arch))
        address = Signal(address_bits(arch))
        exponent = Cat(block.exponent, block.exponent[-1].replicate(VALUE_BITS - len(block.exponent)))
        m.d.sync += [
            stride.eq(longest_hidden(layer)),
            product.eq(block.place * stride),
            padding.eq(block.block >= Mux(block.shared, layer.shared_blocks, layer.inter_blocks)),
            address.eq(self.address + product + block.block),
        ]

        # ---- addresses and lines wait for the writer, each in its own queue ----
        m.submodules.addresses = addresses = SyncFIFOBuffered(width=len(address), depth=LINES)
        m.submodules.lines = lines = SyncFIFOBuffered(width=line_layout().size, depth=LINES)
        room = addresses.w_rdy & lines.w_rdy
        queued = data.View(line_layout(), lines.w_data)
        m.d.comb += [
            addresses.w_data.eq(address),
            queued.text.eq(Cat(block.mantissas.as_value(), exponent)),
            queued.padding.eq(padding),
            queued.last.eq(block.last),
        ]
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += self.blocks.ready.eq(1)
                m.d.sync += block.eq(self.blocks.payload)
                with m.If(self.blocks.valid):
                    m.next = "PRODUCT"
            with m.State("PRODUCT"):
                m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.next = "QUEUE"
            with m.State("QUEUE"):
                m.d.comb += [lines.w_en.eq(room), addresses.w_en.eq(room & ~padding)]
                with m.If(room):
                    m.next = "TAKE"

        # ---- to the writer ----
        line = data.View(line_layout(), lines.r_data)
        step = Signal(range(steps))
        with m.If(self.values.valid & self.values.ready):
            m.d.sync += step.eq(Mux(step == steps - 1, 0, step + 1))
        m.d.comb += [
            self.ranges.payload.address.eq(addresses.r_data),
            self.ranges.payload.words.eq(SEGMENT_ALIGN * 8 >> exact_log2(arch.data_bits)),
            self.ranges.valid.eq(addresses.r_rdy),
            addresses.r_en.eq(self.ranges.ready),
            self.values.payload.eq(Cat(line.text, Const(0, 8 * SEGMENT_ALIGN)).word_select(step, 32 * arch.lanes)),
            self.values.valid.eq(lines.r_rdy & ~line.padding),
            lines.r_en.eq(line.padding | (self.values.ready & (step == steps - 1))),
            self.job_done.eq(lines.r_rdy & lines.r_en & line.last),
        ]
        return m
