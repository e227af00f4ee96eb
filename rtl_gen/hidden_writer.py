"""Writes re-quantised hidden activations to memory, for the down pass to load."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moe_hw.arch import SEGMENT_ALIGN, Arch
from rtl_gen.bus import range_layout
from rtl_gen.skid_buffer import SkidBuffer
from rtl_gen.types import address_bits, hidden_block_layout, layer_layout

VALUE_BITS = 16
"""Bits of an exponent in memory."""

RUNS = 4
"""Runs that can wait for the writer."""


def run_layout(arch: Arch) -> data.StructLayout:
    """A run of ``lines`` lines from ``address``; ``last`` marks a job's last one, which may have no lines."""
    return data.StructLayout({"address": address_bits(arch), "lines": range(arch.run_lines + 1), "last": 1})


class HiddenWriter(wiring.Component):
    """Makes a line of 64 bytes of each block, one after the other; blocks of padding and of unused jobs are dropped.

    Lines are collected into runs and written as one burst: a memory that turns around from reading to writing for each
    line would lose more time with it than with the line. A run ends where a burst has to, and with a job.

    Latency: three cycles from the last block of a run to its range; throughput: ``16 / lanes`` cycles a block, at least
    two.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout()), address : In
        The layer at work, and where its hidden activations go (units of 64 bytes).
    restart : In(1)
        Pulse: the next block is the first at ``address``.
    blocks : In(stream of hidden_block_layout(arch))
    ranges : Out(stream of range_layout(arch)), values : Out(stream of 32 x lanes bits)
        For the writer.
    job_done : Out(1)
        Pulse: the last range of a job has been handed to the writer.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "address": In(address_bits(arch)),
                "restart": In(1),
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
        longest = arch.run_lines
        block = Signal(hidden_block_layout(arch))
        exponent = Cat(block.exponent, block.exponent[-1].replicate(VALUE_BITS - len(block.exponent)))
        text = Cat(block.mantissas.as_value(), exponent)

        # ---- lines wait until their run is complete, and runs for the writer ----
        m.submodules.lines = lines = SyncFIFOBuffered(width=len(text), depth=2 * longest)
        m.submodules.runs = runs = SyncFIFOBuffered(width=run_layout(arch).size, depth=RUNS)
        run = data.View(run_layout(arch), runs.w_data)
        address = Signal(address_bits(arch))  # of the next line
        first = Signal(address_bits(arch))  # line of the run
        count = Signal.like(run.lines)
        kept, end_of_run = Signal(), Signal()
        following = address + kept
        room = lines.w_rdy & runs.w_rdy
        m.d.comb += [
            end_of_run.eq(block.last | (kept & (following & (longest - 1) == 0))),
            lines.w_data.eq(text),
            run.address.eq(first),
            run.lines.eq(count + kept),
            run.last.eq(block.last),
        ]
        # Takes a block, then queues it. A register, for who makes the blocks waits for it as a whole.
        ready = Signal(init=1)
        m.d.comb += self.blocks.ready.eq(ready)
        m.d.sync += ready.eq(Mux(ready, ~self.blocks.valid, room))
        with m.If(ready):
            coming = self.blocks.payload
            blocks = Mux(coming.shared, layer.shared_blocks, layer.inter_blocks)
            m.d.sync += [block.eq(coming), kept.eq(~coming.unused & (coming.block < blocks))]
        with m.Else():
            m.d.comb += [lines.w_en.eq(room & kept), runs.w_en.eq(room & end_of_run)]
            with m.If(room):
                m.d.sync += [address.eq(following), count.eq(run.lines)]
                with m.If(end_of_run):
                    m.d.sync += [first.eq(following), count.eq(0)]
        with m.If(self.restart):
            m.d.sync += [address.eq(self.address), first.eq(self.address)]

        # ---- to the writer ----
        steps = SEGMENT_ALIGN // 4 // arch.lanes
        oldest = data.View(run_layout(arch), runs.r_data)
        step = Signal(range(steps))
        last_step = step == steps - 1
        m.submodules.values = values = SkidBuffer(32 * arch.lanes)  # the bus is far from here
        wiring.connect(m, values.o, wiring.flipped(self.values))
        with m.If(values.i.valid & values.i.ready):
            m.d.sync += step.eq(Mux(last_step, 0, step + 1))
        m.d.comb += [
            self.ranges.payload.address.eq(oldest.address),
            self.ranges.payload.words.eq(oldest.lines << exact_log2(SEGMENT_ALIGN * 8 // arch.data_bits)),
            self.ranges.valid.eq(runs.r_rdy),
            runs.r_en.eq(self.ranges.ready),
            self.job_done.eq(self.ranges.valid & self.ranges.ready & oldest.last),
            values.i.payload.eq(Cat(lines.r_data, Const(0, 8 * SEGMENT_ALIGN)).word_select(step, 32 * arch.lanes)),
            values.i.valid.eq(lines.r_rdy),
            lines.r_en.eq(values.i.ready & last_step),
        ]
        return m
