"""Walks a batch: which matrices are read, in which order, and what is done with each."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Shape, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import ROUTER_SLOTS, Arch
from rtl_gen.matrix_segment import MatrixSegment
from rtl_gen.split import Split
from rtl_gen.types import (
    BITS,
    Kind,
    count_bits,
    expert_bits,
    layer_layout,
    place_bits,
    segment_layout,
    table_layout,
)

WORKS = 8
"""Pieces of work that the walk may be ahead of the dispatcher."""

AHEAD_SHIFT = 2
"""Experts are read ahead of the routes if there are 2^2 choices or more for each: some 2 % of them go unused."""


class Step(enum.Enum, shape=2):
    """What a piece of work is."""

    JOB = 0
    BARRIER = 1  # wait until the hidden activations are in memory
    STORE = 2  # wait until all sums of the chunk are complete, and write them


def work_layout(arch: Arch) -> data.StructLayout:
    """A piece of work. A job has the next ``slots`` vectors of its queue, from ``head`` on if it is ``fresh``.

    ``unused`` marks the job of an expert that was read ahead and that no token chose: some vector, whose results are
    dropped, so that its weights pass through the array and leave no trace. Its ``head`` means nothing.
    """
    return data.StructLayout(
        {
            "step": Step,
            "kind": Kind,
            "shared": 1,
            "unused": 1,
            "fresh": 1,
            "head": place_bits(arch),
            "slots": bits_for(arch.slots),
            "groups": 16,
            "bits": BITS,
        }
    )


class Walk(wiring.Component):
    """Issues the router's jobs, then gate_up of every expert that a token chose, then down of them, chunk by chunk.

    If routes are given there are no router's jobs. The shared expert comes first in each pass, and its gate_up does not
    wait for the routes. Segments are offered as soon as they are known: weights stream while earlier jobs compute,
    across experts and passes. A job never waits for the segment of a later one.

    While the router decides, the memory would be idle. If there are so many choices that nearly every expert will be
    used, gate_up matrices are read **ahead** of the routes, as far as the streamer takes them; only for batches of one
    job, whose queues are not split, so that the order of the segments is known.

    Latency and throughput: an expert that no token chose takes three cycles, any other nine with one job; with more,
    two for each further job and what ``Split`` takes.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout)
        Stable from ``start`` until ``done``.
    start : In(1)
        Begins a batch.
    routed : In(1)
        Pulse: all routes are in their queues.
    expert : Out, head : In, count : In
        Queue lookup, one cycle later.
    table_loaded : In(1), table_expert : Out, table_entry : In(table_layout())
        The expert table can be read; its read port, as of ``ExpertTables``.
    segments : Out(stream of segment_layout), works : Out(stream of work_layout)
        Matrices to read, and what to do with them in the same order.
    experts_used : Out
        Experts of the batch so far.
    done : Out(1)
        Everything has been issued and taken; until the next ``start``.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "start": In(1),
                "routed": In(1),
                "expert": Out(expert_bits(arch)),
                "head": In(place_bits(arch)),
                "count": In(count_bits(arch)),
                "table_loaded": In(1),
                "table_expert": Out(expert_bits(arch)),
                "table_entry": In(table_layout()),
                "segments": Out(stream.Signature(segment_layout(arch))),
                "works": Out(stream.Signature(work_layout(arch))),
                "experts_used": Out(bits_for(arch.max_experts + 1)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer
        m.submodules.split = split = Split(arch)
        m.submodules.queue = queue = SyncFIFOBuffered(width=Shape.cast(work_layout(arch)).width, depth=WORKS)
        work = Signal(work_layout(arch))
        m.d.comb += [
            queue.w_data.eq(work),
            self.works.payload.eq(queue.r_data),
            self.works.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.works.ready),
        ]

        # ---- where the walk is ----
        kind = Signal(Kind)
        shared = Signal()
        routed = Signal()
        count = Signal.like(self.count)
        parts_left = Signal.like(split.parts)
        extra_left = Signal.like(split.extra)
        fresh = Signal()
        has_shared = layer.shared_blocks != 0
        by_token = (kind == Kind.ROUTER) | shared
        most = min(ROUTER_SLOTS, arch.slots)
        m.d.comb += [
            split.count.eq(Mux(by_token, layer.tokens, count)),
            split.slots.eq(Mux((kind == Kind.ROUTER) & (layer.slots > most), most, layer.slots)),
        ]
        with m.If(self.start):
            m.d.sync += routed.eq(0)
        with m.Elif(self.routed):
            m.d.sync += routed.eq(1)

        # ---- reading ahead of the routes ----
        choices = Signal(range(arch.queue_entries + 1))
        may_run_ahead = Signal()
        run_ahead = Signal()
        ahead = Signal(expert_bits(arch))  # experts that were read ahead
        asked, ahead_known = Signal(), Signal()  # its entry is being read, and is there
        expert = Signal(expert_bits(arch))
        more_ahead = Signal()
        was_read = (kind == Kind.UP) & (expert < ahead)
        m.d.sync += [
            choices.eq(layer.tokens * layer.top_k),
            may_run_ahead.eq((layer.tokens <= layer.slots) & (choices >= layer.experts << AHEAD_SHIFT)),
            more_ahead.eq(may_run_ahead & ~layer.given_routes & (ahead != layer.experts)),
        ]

        # ---- the matrix at hand ----
        entry = Signal(table_layout())
        empty = Signal()  # the queue that was looked up has no tokens
        m.submodules.matrix = matrix = MatrixSegment(arch)
        m.d.comb += [
            matrix.layer.eq(layer),
            matrix.kind.eq(kind),
            matrix.shared.eq(shared),
            matrix.expert.eq(entry),
            self.table_expert.eq(Mux(routed, expert, ahead)),
            self.expert.eq(expert),
        ]
        # What block RAM answers has a cycle of its own, before it is computed with.
        m.d.sync += [
            entry.eq(self.table_entry),
            empty.eq(self.count == 0),
            count.eq(self.count),
            asked.eq(self.table_loaded & ~run_ahead),
            ahead_known.eq(asked & ~run_ahead),
        ]
        free = ~self.segments.valid | self.segments.ready
        with m.If(self.segments.ready):
            m.d.sync += self.segments.valid.eq(0)
        m.d.comb += [
            work.kind.eq(kind),
            work.shared.eq(shared),
            work.fresh.eq(fresh),
            work.head.eq(self.head),
            work.slots.eq(split.base + (extra_left != 0)),
            work.groups.eq(matrix.segment.groups),
            work.bits.eq(matrix.segment.bits),
        ]

        def push(step: Step, following: str) -> None:
            m.d.comb += [work.step.eq(step), queue.w_en.eq(1)]
            with m.If(queue.w_rdy):
                m.next = following

        def begin_up() -> None:
            m.d.sync += [kind.eq(Kind.UP), shared.eq(has_shared)]
            m.next = "ROUTES"
            with m.If(has_shared):
                m.next = "TARGET"

        with m.FSM():
            with m.State("DONE"):
                m.d.comb += self.done.eq(queue.level == 0)
                m.d.comb += matrix.restart.eq(1)
                m.d.sync += [kind.eq(Kind.ROUTER), shared.eq(0)]
                m.d.sync += ahead.eq(0)
                with m.If(self.start):
                    m.d.sync += self.experts_used.eq(0)
                    m.next = "TARGET"
                    with m.If(layer.given_routes):
                        begin_up()

            # The router, or an expert with at least one token.
            with m.State("TARGET"):
                m.d.comb += split.start.eq(1)
                m.d.sync += [fresh.eq(1), self.experts_used.eq(self.experts_used + (kind == Kind.UP))]
                m.next = "SPLIT"
            with m.State("SPLIT"):
                m.d.sync += [parts_left.eq(split.parts), extra_left.eq(split.extra)]
                with m.If(split.done):
                    m.next = "SEGMENT"
                    with m.If(was_read & ~by_token):
                        m.next = "JOB"
            with m.State("SEGMENT"), m.If(free):
                m.d.sync += [self.segments.valid.eq(1), self.segments.payload.eq(matrix.segment)]
                m.next = "JOB"
            with m.State("JOB"):
                m.d.comb += [work.step.eq(Step.JOB), queue.w_en.eq(1)]
                with m.If(queue.w_rdy):
                    m.d.sync += [
                        fresh.eq(0),
                        parts_left.eq(parts_left - 1),
                        extra_left.eq(extra_left - (extra_left != 0)),
                    ]
                    m.next = "SEGMENT"
                    with m.If(parts_left == 1):
                        m.next = "NEXT"

            with m.State("NEXT"):
                with m.If(kind == Kind.ROUTER):
                    begin_up()
                with m.Elif(shared):
                    m.d.sync += shared.eq(0)
                    m.next = "ROUTES"
                with m.Else():
                    m.next = "ADVANCE"
            with m.State("ROUTES"):
                m.d.comb += self.expert.eq(0)
                m.d.sync += expert.eq(0)
                with m.If(routed & self.table_loaded):
                    m.next = "LOOK"
                with m.Elif(~routed & more_ahead & free & ahead_known):
                    m.d.comb += run_ahead.eq(1)
                    m.d.sync += [
                        self.segments.valid.eq(1),
                        self.segments.payload.eq(matrix.segment),
                        ahead.eq(ahead + 1),
                    ]
            with m.State("LOOK"):
                m.next = "CHECK"
            with m.State("CHECK"):
                m.next = "TARGET"
                with m.If(empty):
                    m.next = "ADVANCE"
                    with m.If(was_read):
                        m.next = "UNUSED"
            with m.State("UNUSED"):
                m.d.comb += [work.unused.eq(1), work.fresh.eq(1), work.slots.eq(1)]
                push(Step.JOB, "ADVANCE")
            with m.State("ADVANCE"):
                m.d.comb += self.expert.eq(expert + 1)
                m.d.sync += expert.eq(expert + 1)
                m.next = "LOOK"
                with m.If(expert == layer.experts - 1):
                    m.next = "BARRIER"
                    with m.If(kind == Kind.DOWN):
                        m.next = "STORE"

            with m.State("BARRIER"):
                push(Step.BARRIER, "DOWN")
            with m.State("DOWN"):
                m.d.sync += [kind.eq(Kind.DOWN), shared.eq(has_shared)]
                m.next = "ROUTES"
                with m.If(has_shared):
                    m.next = "TARGET"
            with m.State("STORE"):
                push(Step.STORE, "CHUNK")
            with m.State("CHUNK"):
                m.d.comb += matrix.advance.eq(1)
                m.next = "DOWN"
                with m.If(matrix.last_chunk):
                    m.next = "DONE"
        return m
