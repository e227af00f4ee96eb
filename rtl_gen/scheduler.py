"""The scheduler: queues the router's choices by expert, and issues the work of a batch."""

from __future__ import annotations

from amaranth.hdl import Module, Mux
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import bits_for

from moe_hw.arch import Arch
from rtl_gen.dispatcher import Dispatcher, work_members
from rtl_gen.expert_queues import ExpertQueues
from rtl_gen.routing_record import RoutingRecord
from rtl_gen.types import expert_bits, route_layout, segment_layout, table_layout
from rtl_gen.walk import Walk


class Scheduler(wiring.Component):
    """Leads a batch from its start to its last output.

    The **walk** decides what is computed in which order and sends segments ahead; the **dispatcher** sends a job
    to the array when its vectors are loaded. Between them are the **expert queues**.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout)
        Stable from ``start`` until ``done``, and until the routing record is read.
    start : In(1), done : Out(1)
        Begins a batch; it is finished, until the next ``start``.
    routes : In(stream of route_layout)
        The choices of all tokens in order; a token chooses an expert at most once.
    read : In(1), routing : Out(stream of 32 bits), routing_idle : Out(1)
        Sends the routing record, when done; it is sent.
    experts_used : Out
        Experts of the batch so far.
    input_address, hidden_address, fetches, loaded, jobs, released, slot, job_done, written, store, stored, loading,
    storing
        As in ``Dispatcher``.
    table_loaded, table_expert, table_entry, segments
        As in ``Walk``.

    Latency and throughput: those of its parts.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                **work_members(arch),
                "start": In(1),
                "done": Out(1),
                "routes": In(stream.Signature(route_layout(arch))),
                "read": In(1),
                "routing": Out(stream.Signature(32)),
                "routing_idle": Out(1),
                "experts_used": Out(bits_for(arch.max_experts + 1)),
                "table_loaded": In(1),
                "table_expert": Out(expert_bits(arch)),
                "table_entry": In(table_layout()),
                "segments": Out(stream.Signature(segment_layout(arch))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        m.submodules.queues = queues = ExpertQueues(arch)
        m.submodules.record = record = RoutingRecord(arch)
        m.submodules.walk = walk = Walk(arch)
        m.submodules.dispatcher = dispatcher = Dispatcher(arch)
        connect(m, flipped(self.routes), queues.routes)
        connect(m, record.words, flipped(self.routing))
        connect(m, walk.segments, flipped(self.segments))
        connect(m, walk.works, dispatcher.works)
        m.d.comb += [
            queues.experts.eq(self.layer.experts),
            queues.clear.eq(self.start),
            queues.expert.eq(walk.expert),
            queues.place.eq(Mux(self.done, record.place, dispatcher.place)),
            record.start.eq(self.read),
            record.arrived.eq(queues.arrived),
            record.entry.eq(queues.entry),
            self.routing_idle.eq(record.idle),
            walk.layer.eq(self.layer),
            walk.start.eq(self.start),
            walk.routed.eq(queues.filled),
            walk.table_loaded.eq(self.table_loaded),
            self.table_expert.eq(walk.table_expert),
            walk.table_entry.eq(self.table_entry),
            walk.head.eq(queues.head),
            walk.count.eq(queues.count),
            self.experts_used.eq(walk.experts_used),
            dispatcher.entry.eq(queues.entry),
            dispatcher.next.eq(queues.next),
            self.done.eq(walk.done & dispatcher.idle),
        ]
        for name, member in work_members(arch).items():
            outer, inner = getattr(self, name), getattr(dispatcher, name)
            if member.is_signature:
                connect(m, inner, flipped(outer))
            elif member.flow == In:
                m.d.comb += inner.eq(outer)
            else:
                m.d.comb += outer.eq(inner)
        return m
