"""Runs jobs on the array: swaps tiles, multiplies every slot's block by every tile."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from moe_hw.arch import TILES_PER_SCALE_BEAT, Arch
from rtl_gen.accumulate import FRACTION, tag_layout
from rtl_gen.plane_loader import PlaneLoader
from rtl_gen.row import command_layout
from rtl_gen.token_buffer import ExponentRead
from rtl_gen.types import (
    Kind,
    SlotRead,
    down_groups,
    job_layout,
    layer_layout,
    router_groups,
    slot_bits,
    up_groups,
)
from rtl_gen.vector_pipeline import VectorPipeline


class Activity(enum.Enum, shape=3):
    """What the sequencer does in a cycle; the counters of a command add these up."""

    NO_JOB = 0
    BUSY = 1
    WAIT_WEIGHTS = 2
    WAIT_HIDDEN = 3
    WAIT_RESULTS = 4


class Sequencer(wiring.Component):
    """Issues vectors to the array in the order group, block, pass, slot, half.

    While one tile is multiplied, the planes of the next are loaded into the shadow codes: a tile takes as many
    cycles as it has vectors, or as its planes take to arrive, whichever is more.

    Latency: three cycles from a decision to its command, see ``VectorPipeline``; throughput: a vector a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
    jobs : In(stream of job_layout(arch))
    slot : Out(SlotRead(arch))
        Slot table: the token of each slot.
    exponents : Out(ExponentRead(arch))
        Exponents of the vectors in the token buffer.
    hidden_ready : In(1)
        Pulse: the hidden activations of the job are all in the token buffer.
    hidden_stride : Out(10)
        Blocks in a hidden vector of the job.
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
                "slot": Out(SlotRead(arch)),
                "exponents": Out(ExponentRead(arch)),
                "hidden_ready": In(1),
                "hidden_stride": Out(10),
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
        kind = Signal(Kind)
        groups = Signal(16)
        blocks = Signal(10)
        passes = Signal(3)
        shift = Signal(signed(6))
        m.d.comb += [
            self.hidden_stride.eq(Mux(job.shared, layer.shared_blocks, layer.inter_blocks)),
            blocks.eq(Mux(kind == Kind.DOWN, self.hidden_stride, layer.hidden_blocks)),
        ]
        with m.Switch(kind):
            with m.Case(Kind.ROUTER):
                m.d.comb += [
                    groups.eq(router_groups(arch, layer)),
                    passes.eq(layer.router_passes),
                    shift.eq(layer.router_shift),
                ]
            with m.Case(Kind.UP):
                m.d.comb += [
                    groups.eq(up_groups(arch, self.hidden_stride)),
                    passes.eq(Mux(job.shared, layer.shared_passes, layer.passes)),
                    shift.eq(Mux(job.shared, layer.shared_up_shift, layer.up_shift)),
                ]
            with m.Case(Kind.DOWN):
                m.d.comb += [
                    groups.eq(down_groups(arch, layer)),
                    passes.eq(Mux(job.shared, layer.shared_passes, layer.passes)),
                    shift.eq(Mux(job.shared, layer.shared_down_shift, layer.down_shift)),
                ]

        # ---- the loop nest ----
        group, block, pass_, slot, half = Signal(16), Signal(10), Signal(3), Signal(slot_bits(arch)), Signal()
        last_group = group == groups - 1
        last_block = block == blocks - 1
        last_pass = pass_ == passes - 1
        last_slot = slot == job.slots - 1
        last_half = (kind != Kind.ROUTER) | half
        tile_index = Signal(range(TILES_PER_SCALE_BEAT))

        m.submodules.loader = loader = PlaneLoader(arch)
        running = Signal()  # multiplying
        swapped = Signal()  # the active codes are those of this pass
        credits = Signal(range(arch.max_tokens + 1), init=arch.max_tokens)
        complete = last_block & last_pass & last_half
        has_tile = swapped | loader.full
        has_room = ~complete | (credits != 0)
        issue = Signal()
        swap = Signal()
        m.d.comb += [issue.eq(running & has_tile & has_room), swap.eq(issue & ~swapped)]
        m.d.sync += credits.eq(credits + self.result_taken - (issue & complete))

        end_of_pass = issue & last_half & last_slot
        end_of_tile = end_of_pass & last_pass
        end_of_phase = end_of_tile & last_block & last_group
        start_phase = Signal()
        with m.If(issue):
            m.d.sync += half.eq(~last_half)
            with m.If(last_half):
                m.d.sync += slot.eq(Mux(last_slot, 0, slot + 1))
        with m.If(end_of_pass):
            m.d.sync += pass_.eq(Mux(last_pass, 0, pass_ + 1))
        with m.If(end_of_tile):
            m.d.sync += [block.eq(Mux(last_block, 0, block + 1)), tile_index.eq(tile_index + 1)]
            with m.If(last_block):
                m.d.sync += group.eq(group + 1)
        with m.If(start_phase):
            m.d.sync += [group.eq(0), tile_index.eq(0)]
        m.d.sync += swapped.eq((swapped | swap) & ~end_of_pass)

        m.d.comb += [
            loader.start.eq(start_phase),
            loader.swap.eq(swap),
            loader.last_pass.eq(last_pass),
            loader.more.eq(~(last_pass & last_block & last_group)),
            loader.beat_ready.eq(self.beat_ready),
            self.beat_pop.eq(loader.beat_pop),
        ]

        # ---- jobs and phases ----
        hidden_ready = Signal()
        with m.If(self.hidden_ready):
            m.d.sync += hidden_ready.eq(1)
        with m.FSM():
            with m.State("idle"):
                m.d.comb += self.jobs.ready.eq(1)
                m.d.sync += job.eq(self.jobs.payload)
                with m.If(self.jobs.valid):
                    m.d.sync += kind.eq(Mux(self.jobs.payload.router, Kind.ROUTER, Kind.UP))
                    m.next = "start"
            with m.State("start"):
                m.d.comb += [start_phase.eq(1), self.activity.eq(Activity.WAIT_WEIGHTS)]
                m.d.sync += running.eq(1)
                m.next = "run"
            with m.State("run"):
                with m.If(issue):
                    m.d.comb += self.activity.eq(Activity.BUSY)
                with m.Elif(has_tile):
                    m.d.comb += self.activity.eq(Activity.WAIT_RESULTS)
                with m.Else():
                    m.d.comb += self.activity.eq(Activity.WAIT_WEIGHTS)
                with m.If(end_of_phase):
                    m.d.sync += running.eq(0)
                    with m.If(kind == Kind.UP):
                        m.next = "hidden"
                    with m.Else():
                        m.next = "idle"
            with m.State("hidden"):
                m.d.comb += self.activity.eq(Activity.WAIT_HIDDEN)
                with m.If(hidden_ready):
                    m.d.sync += [hidden_ready.eq(0), kind.eq(Kind.DOWN)]
                    m.next = "start"

        # ---- what is multiplied ----
        m.submodules.pipeline = pipeline = VectorPipeline(arch)
        vector = pipeline.vector
        left = shift + ((passes - 1 - pass_) << 2) + Mux((kind == Kind.ROUTER) & ~half, 8, 0)
        connect(m, pipeline.exponents, flipped(self.exponents))
        m.d.comb += [
            self.slot.parity.eq(job.parity),
            self.slot.index.eq(slot),
            pipeline.layer.eq(layer),
            pipeline.blocks.eq(blocks),
            pipeline.issue.eq(issue),
            pipeline.swap.eq(swap),
            pipeline.plane.eq(loader.plane),
            pipeline.slot.eq(self.slot.data),
            vector.result.kind.eq(kind),
            vector.result.shared.eq(job.shared),
            vector.result.parity.eq(job.parity),
            vector.result.last.eq(last_group & last_slot),
            vector.result.slot.eq(slot),
            vector.result.group.eq(group),
            vector.block.eq(block),
            vector.half.eq(half),
            vector.right.eq(FRACTION - left),
            vector.first.eq((block == 0) & (pass_ == 0) & ~half),
            vector.complete.eq(complete),
            vector.scale_index.eq(tile_index),
            vector.scale_pop.eq(end_of_tile & (tile_index.all() | (last_block & last_group))),
            self.command.eq(pipeline.command),
            self.tag_valid.eq(pipeline.tag_valid),
            self.tag.eq(pipeline.tag),
        ]
        return m
