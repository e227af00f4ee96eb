"""Runs jobs on the array: swaps tiles, multiplies every slot's block by every tile."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import enum, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped

from moe_hw.arch import ROWS, TILES_PER_SCALE_BEAT, Arch
from rtl_gen.accumulate import FRACTION, tag_layout
from rtl_gen.plane_loader import PlaneLoader
from rtl_gen.row import command_layout
from rtl_gen.types import (
    BITS,
    Kind,
    SlotRead,
    job_layout,
    layer_layout,
    passes_of,
    slot_bits,
)
from rtl_gen.vector_buffer import ExponentRead
from rtl_gen.vector_pipeline import VectorPipeline


class Activity(enum.Enum, shape=2):
    """What the sequencer does in a cycle; the counters of a command add these up."""

    NO_JOB = 0
    BUSY = 1
    WAIT_WEIGHTS = 2
    WAIT_RESULTS = 3


MATRICES = 32
"""Matrices that may be read ahead of the array."""

RELEASE_DELAY = ROWS + 6
"""Cycles from the decision to issue a vector until the last row has read it, and may lose it."""


class Sequencer(wiring.Component):
    """Issues vectors to the array in the order group, block, pass, slot, half.

    While one tile is multiplied, the planes of the next, of the next job too, are loaded into the shadow codes: a tile
    takes as many cycles as it has vectors, or as its planes take to arrive, whichever is more.

    Latency: three cycles from a decision to its command, see ``VectorPipeline``; throughput: a vector a cycle, from
    one job to the next without a pause.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
    jobs : In(stream of job_layout(arch))
        Jobs whose vectors are in the vector buffer, in the order of their matrices in the expert buffer.
    released : Out(1)
        Pulse: a job's half of the slot table and of the vector buffer is free.
    slot : Out(SlotRead(arch))
        Slot table.
    exponents : Out(ExponentRead(arch))
        Exponents of the vectors in the vector buffer.
    bits : In(stream of 5 bits)
        Bits of the codes of each matrix that is read, as many ahead of its job as ``MATRICES``.
    beat_ready : In(1), beat_pop : Out(1)
        A plane beat lies in the expert buffer; it has been taken by the load command of this cycle.
    command : Out(command_layout(arch))
        For the array; three cycles after the decision.
    tag_valid : Out(1), tag : Out(tag_layout(arch))
        For the accumulators, in the cycle of the command's sums.
    result_taken : In(1)
        Pulse: a result has left the accumulators' queue.
    activity : Out(Activity)
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "jobs": In(stream.Signature(job_layout(arch))),
                "released": Out(1),
                "slot": Out(SlotRead(arch)),
                "exponents": Out(ExponentRead(arch)),
                "bits": In(stream.Signature(BITS)),
                "beat_ready": In(1),
                "beat_pop": Out(1),
                "command": Out(command_layout(arch)),
                "tag_valid": Out(1),
                "tag": Out(tag_layout(arch)),
                "result_taken": In(1),
                "activity": Out(Activity),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer

        # ---- the job at hand and the shape of its matrix ----
        job = Signal(job_layout(arch))
        running = Signal()
        blocks = Signal(10)
        # Indices of the loop nest's last steps.
        final_group, final_block, final_pass = Signal(16), Signal(10), Signal(3)
        final_slot = Signal(slot_bits(arch))
        shift = Signal(signed(6))
        coming = self.jobs.payload
        coming_blocks = Signal.like(blocks)
        with m.If(coming.kind == Kind.DOWN):
            m.d.comb += coming_blocks.eq(Mux(coming.shared, layer.shared_blocks, layer.inter_blocks))
        with m.Else():
            m.d.comb += coming_blocks.eq(layer.input_blocks)
        with m.Switch(job.kind):
            with m.Case(Kind.ROUTER):
                m.d.comb += shift.eq(layer.router_shift)
            with m.Case(Kind.UP):
                m.d.comb += shift.eq(Mux(job.shared, layer.shared_up_shift, layer.up_shift))
            with m.Case(Kind.DOWN):
                m.d.comb += shift.eq(Mux(job.shared, layer.shared_down_shift, layer.down_shift))

        # ---- the loop nest ----
        group, block, pass_, slot = Signal(16), Signal(10), Signal(3), Signal(slot_bits(arch))
        router = Signal()
        # Registers: what is issued, swapped and loaded depends on them.
        last_group, last_block, last_pass, last_slot, last_half = Signal(), Signal(), Signal(), Signal(), Signal()
        lower = router & last_half
        tile_index = Signal(range(TILES_PER_SCALE_BEAT))

        m.submodules.loader = loader = PlaneLoader(arch)
        m.submodules.bits = bits_ahead = SyncFIFOBuffered(width=BITS, depth=MATRICES)
        swapped = Signal()  # the active codes are those of this pass
        credits = Signal(range(arch.slots + 1), init=arch.slots)
        complete = last_block & last_pass & last_half
        has_tile = swapped | loader.full
        has_credit = Signal(init=1)  # as the flags of the loops: a register
        has_room = ~complete | has_credit
        issue = Signal()
        swap = Signal()
        m.d.comb += [issue.eq(running & has_tile & has_room), swap.eq(issue & ~swapped)]
        result_taken = Signal()  # a register: those who take results wait for much
        spent = issue & complete
        m.d.sync += [
            result_taken.eq(self.result_taken),
            credits.eq(credits + result_taken - spent),
            has_credit.eq(Mux(spent, result_taken | (credits > 1), result_taken | (credits != 0))),
        ]

        end_of_pass = issue & last_half & last_slot
        end_of_tile = end_of_pass & last_pass
        end_of_group = end_of_tile & last_block
        end_of_job = Signal()
        m.d.comb += end_of_job.eq(end_of_group & last_group)

        def step(index: Signal, last: Signal, final: Signal) -> None:
            """From 0 to ``final`` and around; ``last`` marks that the index is there."""
            m.d.sync += [index.eq(Mux(last, 0, index + 1)), last.eq(Mux(last, final == 0, index + 1 == final))]

        with m.If(issue):
            m.d.sync += last_half.eq(~router | ~last_half)
            with m.If(last_half):
                step(slot, last_slot, final_slot)
        with m.If(end_of_pass):
            step(pass_, last_pass, final_pass)
        with m.If(end_of_tile):
            step(block, last_block, final_block)
            m.d.sync += tile_index.eq(tile_index + 1)
        with m.If(end_of_group):
            step(group, last_group, final_group)
        with m.If(end_of_job):
            m.d.sync += tile_index.eq(0)
        m.d.sync += swapped.eq((swapped | swap) & ~end_of_pass)
        m.d.comb += [
            bits_ahead.w_data.eq(self.bits.payload),
            bits_ahead.w_en.eq(self.bits.valid),
            self.bits.ready.eq(bits_ahead.w_rdy),
            loader.bits.payload.eq(bits_ahead.r_data),
            loader.bits.valid.eq(bits_ahead.r_rdy),
            bits_ahead.r_en.eq(loader.bits.ready),
            loader.swap.eq(swap),
            loader.last_pass.eq(last_pass),
            loader.last_of_job.eq(last_block & last_group),
            loader.beat_ready.eq(self.beat_ready),
            self.beat_pop.eq(loader.beat_pop),
        ]

        # ---- jobs ----
        m.d.comb += self.jobs.ready.eq(~running | end_of_job)
        with m.If(self.jobs.ready):
            m.d.sync += [
                running.eq(self.jobs.valid),
                job.eq(coming),
                blocks.eq(coming_blocks),
                final_group.eq(coming.groups - 1),
                final_block.eq(coming_blocks - 1),
                final_pass.eq(passes_of(coming.bits) - 1),
                final_slot.eq(coming.slots - 1),
                router.eq(coming.kind == Kind.ROUTER),
                last_group.eq(coming.groups == 1),
                last_block.eq(coming_blocks == 1),
                last_pass.eq(passes_of(coming.bits) == 1),
                last_slot.eq(coming.slots == 1),
                last_half.eq(coming.kind != Kind.ROUTER),
            ]
        with m.If(issue):
            m.d.comb += self.activity.eq(Activity.BUSY)
        with m.Elif(running & has_tile):
            m.d.comb += self.activity.eq(Activity.WAIT_RESULTS)
        with m.Elif(running):
            m.d.comb += self.activity.eq(Activity.WAIT_WEIGHTS)
        release = Signal(RELEASE_DELAY)
        m.d.sync += release.eq(Cat(end_of_job, release))
        m.d.comb += self.released.eq(release[-1])

        # ---- what is multiplied ----
        m.submodules.pipeline = pipeline = VectorPipeline(arch)
        vector = pipeline.vector
        left = shift + ((final_pass - pass_) << 2) + Mux(router & ~lower, 8, 0)
        connect(m, pipeline.exponents, flipped(self.exponents))
        m.d.comb += [
            self.slot.half.eq(job.half),
            self.slot.index.eq(slot),
            pipeline.issue.eq(issue),
            pipeline.swap.eq(swap),
            pipeline.decode.eq(self.layer.elements & ~router),
            pipeline.plane.eq(loader.plane),
            pipeline.slot.eq(self.slot.data),
            vector.result.kind.eq(job.kind),
            vector.result.shared.eq(job.shared),
            vector.result.last.eq(last_group & last_slot),
            vector.result.slot.eq(slot),
            vector.result.group.eq(group),
            vector.half.eq(job.half),
            vector.stride.eq(Mux(router, blocks << 1, blocks)),
            vector.block.eq(block),
            vector.lower.eq(Mux(lower, blocks, 0)),
            vector.right.eq(FRACTION - left),
            vector.first.eq((block == 0) & (pass_ == 0) & ~lower),
            vector.complete.eq(complete),
            vector.scale_index.eq(tile_index),
            vector.scale_pop.eq(end_of_tile & (tile_index.all() | (last_block & last_group))),
            self.command.eq(pipeline.command),
            self.tag_valid.eq(pipeline.tag_valid),
            self.tag.eq(pipeline.tag),
        ]
        return m
