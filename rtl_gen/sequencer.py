"""Runs jobs on the array: loads bit planes, swaps tiles, multiplies every slot's block by every tile."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import EXP_BITS, PLANES_PER_PASS, ROWS, TILES_PER_SCALE_BEAT, Arch
from rtl_gen.accumulate import FRACTION, SHIFT_MAX, tag_layout
from rtl_gen.array import LATENCY
from rtl_gen.delay import Delay
from rtl_gen.row import command_layout
from rtl_gen.token_buffer import ExponentRead
from rtl_gen.types import Kind, SlotRead, job_layout, layer_layout, slot_bits

COMMAND_STAGE = 3
"""Pipeline stage, counted from the decision to issue, in which the command enters the array."""

TAG_STAGE = 5
"""Stage in which the tag is complete."""


class Activity(enum.Enum, shape=3):
    """What the sequencer does in a cycle; the counters of a command add these up."""

    NO_JOB = 0
    BUSY = 1
    WAIT_WEIGHTS = 2
    WAIT_HIDDEN = 3
    WAIT_RESULTS = 4


class Sequencer(wiring.Component):
    """Issues one command a cycle to the array, in the order group, block, pass, slot, half.

    While one tile is multiplied, the planes of the next are loaded into the shadow codes: a tile takes as many
    cycles as it has vectors, or as its planes take to arrive, whichever is more.

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
        per_group = arch.columns
        with m.Switch(kind):
            with m.Case(Kind.ROUTER):
                rows = layer.experts + layer.shared_gate
                m.d.comb += [
                    groups.eq((rows + per_group - 1) // per_group),
                    passes.eq(layer.router_passes),
                    shift.eq(layer.router_shift),
                ]
            with m.Case(Kind.UP):
                m.d.comb += [
                    groups.eq(self.hidden_stride * (2 * ROWS // per_group)),
                    passes.eq(Mux(job.shared, layer.shared_passes, layer.passes)),
                    shift.eq(Mux(job.shared, layer.shared_up_shift, layer.up_shift)),
                ]
            with m.Case(Kind.DOWN):
                m.d.comb += [
                    groups.eq(layer.hidden_blocks * (ROWS // per_group)),
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

        running = Signal()  # multiplying
        swapped = Signal()  # the active codes are those of this pass
        full = Signal()  # the shadow codes are complete
        credits = Signal(range(arch.max_tokens + 1), init=arch.max_tokens)
        complete = last_block & last_pass & last_half
        has_tile = swapped | full
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

        # ---- loading planes: the next pass's start as soon as this one's codes are swapped in ----
        loading = Signal()
        plane = Signal(range(PLANES_PER_PASS))
        next_signed = Signal()
        more = ~(last_pass & last_block & last_group)
        start_load = start_phase | (swap & more)
        load = Signal()
        m.d.comb += [load.eq((loading | (swap & more)) & self.beat_ready), self.beat_pop.eq(load)]
        load_signed = Mux(swap, last_pass, next_signed)
        with m.If(start_load):
            m.d.sync += [loading.eq(1), next_signed.eq(Mux(start_phase, 1, last_pass))]
        with m.If(swap):
            m.d.sync += full.eq(0)
        with m.If(load):
            m.d.sync += plane.eq(plane + 1)
            with m.If(plane == PLANES_PER_PASS - 1):
                m.d.sync += [loading.eq(0), full.eq(1)]

        plane_address = Signal(bits_for(arch.expert_beats - 1))
        m.d.sync += plane_address.eq(plane_address + load)

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

        # ---- stages 0 to 2: which vector, and where it lies ----
        decided = Signal(_issue_layout(arch))
        left = shift + ((passes - 1 - pass_) << 2) + Mux((kind == Kind.ROUTER) & ~half, 8, 0)
        m.d.comb += [
            self.slot.parity.eq(job.parity),
            self.slot.index.eq(slot),
            decided.result.kind.eq(kind),
            decided.result.shared.eq(job.shared),
            decided.result.parity.eq(job.parity),
            decided.result.last.eq(last_group & last_slot),
            decided.result.slot.eq(slot),
            decided.result.group.eq(group),
            decided.block.eq(block),
            decided.half.eq(half),
            decided.right.eq(FRACTION - left),
            decided.first.eq((block == 0) & (pass_ == 0) & ~half),
            decided.complete.eq(complete),
            decided.scale_index.eq(tile_index),
            decided.scale_pop.eq(
                end_of_tile & (tile_index.all() | (last_block & last_group))
            ),
        ]
        stages = [decided] + [Signal(_issue_layout(arch), name=f"stage_{n}") for n in range(1, TAG_STAGE)]
        for earlier, later in zip(stages[:-1], stages[1:], strict=True):
            m.d.sync += later.eq(earlier)

        token = self.slot.data.token
        m.d.sync += stages[2].result.token.eq(token)
        is_down = stages[1].result.kind == Kind.DOWN
        inputs = Signal(bits_for(arch.token_blocks))  # blocks of one half of the inputs
        m.d.sync += inputs.eq(layer.tokens * layer.hidden_blocks)
        offset = Signal(bits_for(arch.token_blocks - 1))
        half_offset = Signal.like(offset)
        vector_offset = Signal.like(offset)
        address = Signal.like(offset)
        exponent_address = Signal.like(offset)
        m.d.sync += [
            vector_offset.eq(Mux(is_down, stages[1].result.slot, token) * blocks),
            offset.eq(Mux(is_down, inputs << 1, 0) + stages[1].block),
            half_offset.eq(Mux(stages[1].half, inputs, 0)),
            exponent_address.eq(vector_offset + offset),
            address.eq(vector_offset + offset + half_offset),
        ]

        # ---- stage 3: the command; planes and swaps keep their distance to the vectors ----
        flow = Signal(data.StructLayout({"load": 1, "first": 1, "signed": 1, "swap": 1, "address": len(plane_address)}))
        m.d.comb += [
            flow.load.eq(load),
            flow.first.eq(plane == 0),
            flow.signed.eq(load_signed),
            flow.swap.eq(swap),
            flow.address.eq(plane_address),
        ]
        for stage in range(1, COMMAND_STAGE + 1):
            later = Signal.like(flow, name=f"flow_{stage}")
            m.d.sync += later.eq(flow)
            flow = later
        m.d.comb += [
            self.command.load.eq(flow.load),
            self.command.load_first.eq(flow.first),
            self.command.load_signed.eq(flow.signed),
            self.command.plane_address.eq(flow.address),
            self.command.swap.eq(flow.swap),
            self.command.x_address.eq(address),
        ]

        # ---- stages 3 to 5: the exponents' part of the shift ----
        m.d.comb += [
            self.exponents.address.eq(exponent_address),
            self.exponents.token.eq(stages[3].result.token),
            self.exponents.slot.eq(stages[3].result.slot),
            self.exponents.hidden.eq(stages[3].result.kind == Kind.DOWN),
        ]
        below = Signal(EXP_BITS + 1)
        tag = Signal(tag_layout(arch))
        m.d.comb += below.eq(self.exponents.vector_exponent - self.exponents.block_exponent)
        m.d.sync += [
            tag.result.eq(stages[4].result),
            tag.result.base_exponent.eq(self.exponents.vector_exponent),
            tag.result.token_exponent.eq(self.exponents.token_exponent),
            tag.first.eq(stages[4].first),
            tag.complete.eq(stages[4].complete),
            tag.scale_index.eq(stages[4].scale_index),
            tag.scale_pop.eq(stages[4].scale_pop),
            tag.shift.eq(stages[4].right + Mux(below > SHIFT_MAX, SHIFT_MAX, below)),
        ]
        valid = Signal(TAG_STAGE)
        m.d.sync += valid.eq(Cat(issue, valid))
        m.submodules.delay = delay = Delay(tag_layout(arch), COMMAND_STAGE + LATENCY - TAG_STAGE)
        m.d.comb += [
            delay.i_valid.eq(valid[-1]),
            delay.i.eq(tag),
            self.tag_valid.eq(delay.o_valid),
            self.tag.eq(delay.o),
        ]
        return m


def _issue_layout(arch: Arch) -> data.StructLayout:
    """What travels with a vector from the decision to the tag."""
    tag = tag_layout(arch)
    names = ("result", "first", "complete", "scale_index", "scale_pop")
    return data.StructLayout({**{name: tag[name].shape for name in names}, "block": 10, "half": 1, "right": 6})
