"""The scheduler: queues the router's choices by expert and issues the work of every expert once."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from moe_hw.arch import Arch
from rtl_gen.expert_queues import ExpertQueues, place_bits
from rtl_gen.routing_record import RoutingRecord
from rtl_gen.types import (
    SlotRead,
    address_bits,
    down_groups,
    expert_bits,
    job_layout,
    layer_layout,
    route_layout,
    router_groups,
    segment_layout,
    slot_layout,
    up_groups,
)

JOBS_AT_HAND = 2
"""Expert jobs that are not finished, at most: one for each half of the slot table."""

def slot_address(arch: Arch, parity: Value, index: Value) -> Value:
    """Where a slot lies: the halves of the table follow each other."""
    return Cat(index[: exact_log2(arch.max_tokens)], parity)


class Scheduler(wiring.Component):
    """Issues the router's job, then one job for each expert that a token chose, the shared expert first.

    The walk over the queues runs ahead: an expert's segments are offered as soon as it is found, while the job before
    it waits for a free half of the slot table. A job never waits for the segments of a later one.

    Latency and throughput: a route takes two cycles, and so does each expert that is passed in the walk and each slot
    that is filled.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout)
        Stable from ``start`` until ``done``, and until the routing record is read.
    start : In(1)
        Begins a batch, when none is under way.
    routes : In(stream of route_layout)
        The choices of all tokens; a token chooses an expert at most once.
    segments : Out(stream of segment_layout), jobs : Out(stream of job_layout)
        The matrices and the work that goes with them: one segment for the router's job, two for an expert's.
        The halves of the slot table alternate from job to job.
    job_done : In(1)
        The oldest expert job at hand is finished and its half of the slot table is free.
    slot_a, slot_b : In(SlotRead)
        Two read ports of the slot table.
    done : Out(1)
        All jobs are finished; until the next ``start``.
    experts_used : Out
        Expert jobs of the batch so far.
    read : In(1)
        Sends the routing record, when done.
    routing : Out(stream of 32 bits)
        For each route, in order of arrival, the expert and the weight as a float32.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "start": In(1),
                "routes": In(stream.Signature(route_layout(arch))),
                "segments": Out(stream.Signature(segment_layout(arch))),
                "jobs": Out(stream.Signature(job_layout(arch))),
                "job_done": In(1),
                "slot_a": In(SlotRead(arch)),
                "slot_b": In(SlotRead(arch)),
                "done": Out(1),
                "experts_used": Out(bits_for(arch.max_experts + 1)),
                "read": In(1),
                "routing": Out(stream.Signature(32)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer
        m.submodules.queues = queues = ExpertQueues(arch)
        m.submodules.record = record = RoutingRecord(arch)
        wiring.connect(m, wiring.flipped(self.routes), queues.routes)
        wiring.connect(m, record.words, wiring.flipped(self.routing))
        m.d.comb += [
            queues.experts.eq(layer.experts),
            record.start.eq(self.read),
            record.arrived.eq(queues.arrived),
            record.entry.eq(queues.entry),
        ]

        # The expert at hand of the walk, and its offer to the part that makes the jobs.
        cursor = Signal(expert_bits(arch))
        shared = Signal()
        address = Signal(address_bits(arch))
        found = Signal(data.StructLayout({"shared": 1, "head": place_bits(arch), "count": bits_for(arch.max_tokens)}))
        found_valid = Signal()
        jobs_idle = Signal()
        outstanding = Signal(range(JOBS_AT_HAND + 1))

        segment = self.segments.payload
        segment_free = ~self.segments.valid | self.segments.ready
        with m.If(self.segments.ready):
            m.d.sync += self.segments.valid.eq(0)

        def send_segment(address: Value, groups: Value, blocks: Value, passes: Value) -> None:
            m.d.sync += [
                self.segments.valid.eq(1),
                segment.address.eq(address),
                segment.groups.eq(groups),
                segment.blocks.eq(blocks),
                segment.passes.eq(passes),
            ]

        def begin() -> None:
            send_segment(layer.router_address, router_groups(arch, layer), layer.hidden_blocks, layer.router_passes)
            m.d.comb += queues.clear.eq(1)
            m.d.sync += self.experts_used.eq(0)
            m.next = "ROUTES"

        def advance() -> None:
            m.d.sync += [shared.eq(0), cursor.eq(Mux(shared, 0, cursor + 1))]
            m.d.sync += address.eq(Mux(shared, layer.expert_address, address + layer.expert_stride))
            m.next = "LOOK"
            with m.If(~shared & (cursor == layer.experts - 1)):
                m.next = "FINISH"

        inter_blocks = Mux(shared, layer.shared_blocks, layer.inter_blocks)
        passes = Mux(shared, layer.shared_passes, layer.passes)
        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                begin()

            with m.State("ROUTES"), m.If(queues.filled):
                m.d.sync += [
                    shared.eq(layer.shared_blocks != 0),
                    cursor.eq(Mux(layer.shared_blocks != 0, layer.experts, 0)),
                    address.eq(Mux(layer.shared_blocks != 0, layer.shared_address, layer.expert_address)),
                ]
                m.next = "LOOK"

            with m.State("LOOK"):
                m.next = "CHECK"

            with m.State("CHECK"):
                with m.If(queues.count == 0):
                    advance()
                with m.Elif(~found_valid):
                    m.d.sync += [
                        found_valid.eq(1),
                        found.shared.eq(shared),
                        found.head.eq(queues.head),
                        found.count.eq(queues.count),
                    ]
                    m.next = "GATE_UP"

            with m.State("GATE_UP"), m.If(segment_free):
                send_segment(address, up_groups(arch, inter_blocks), layer.hidden_blocks, passes)
                m.next = "DOWN"

            with m.State("DOWN"):
                down = address + Mux(shared, layer.shared_down, layer.expert_down)
                with m.If(segment_free):
                    send_segment(down, down_groups(arch, layer), inter_blocks, passes)
                    advance()

            with m.State("FINISH"), m.If(~found_valid & jobs_idle & (outstanding == 0)):
                m.next = "DONE"

            with m.State("DONE"):
                m.d.comb += self.done.eq(1)
                with m.If(self.start):
                    begin()

        # Jobs: fill a half of the slot table, then send the job that owns it.
        m.submodules.slots = slots = Memory(shape=slot_layout(arch), depth=2 * arch.max_tokens, init=[])
        slot_write = slots.write_port()
        for port in (self.slot_a, self.slot_b):
            read = slots.read_port()
            m.d.comb += [read.addr.eq(slot_address(arch, port.parity, port.index)), port.data.eq(read.data)]

        job = self.jobs.payload
        index = Signal(range(arch.max_tokens + 1))
        place = Signal(place_bits(arch))
        last_slot = index == job.slots - 1
        fired = Signal()
        m.d.comb += [
            fired.eq(self.jobs.valid & self.jobs.ready & ~job.router),
            slot_write.addr.eq(slot_address(arch, job.parity, index)),
            queues.expert.eq(cursor),
            queues.place.eq(Mux(self.done, record.place, place)),
        ]
        m.d.sync += outstanding.eq(outstanding + fired - self.job_done)
        with m.If(fired):
            m.d.sync += self.experts_used.eq(self.experts_used + 1)
        with m.FSM():
            with m.State("WAIT"):
                m.d.comb += jobs_idle.eq(1)
                m.d.sync += index.eq(0)
                with m.If(self.start):
                    m.d.sync += [job.router.eq(1), job.shared.eq(0), job.parity.eq(0), job.slots.eq(layer.tokens)]
                    m.next = "TOKENS"
                with m.Elif(found_valid & (outstanding != JOBS_AT_HAND)):
                    m.d.sync += [
                        found_valid.eq(0),
                        place.eq(found.head),
                        job.router.eq(0),
                        job.shared.eq(found.shared),
                        job.parity.eq(~job.parity),
                        job.slots.eq(found.count),
                    ]
                    m.next = "FETCH"

            with m.State("TOKENS"):
                m.d.comb += [slot_write.en.eq(1), slot_write.data.token.eq(index)]
                m.d.sync += index.eq(index + 1)
                with m.If(last_slot):
                    m.next = "JOB"

            with m.State("FETCH"):
                m.next = "SLOT"

            with m.State("SLOT"):
                m.d.comb += [slot_write.en.eq(1), slot_write.data.eq(queues.entry.slot)]
                m.d.sync += [index.eq(index + 1), place.eq(queues.next)]
                m.next = "FETCH"
                with m.If(last_slot):
                    m.next = "JOB"

            with m.State("JOB"):
                m.d.comb += self.jobs.valid.eq(1)
                with m.If(self.jobs.ready):
                    m.next = "WAIT"
        return m
