"""The expert queues: the router's choices, linked in a list for each expert."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moe_hw.arch import Arch
from rtl_gen.types import count_bits, expert_bits, place_bits, route_layout, token_bits, weight_layout


def queue_layout(arch: Arch) -> data.StructLayout:
    """An expert's queue: a linked list of entries; head and tail are meaningless if it is empty."""
    place = place_bits(arch)
    return data.StructLayout({"head": place, "tail": place, "count": count_bits(arch)})


def entry_layout(arch: Arch) -> data.StructLayout:
    """A route in its queue."""
    return data.StructLayout({"expert": expert_bits(arch), "token": token_bits(arch), "weight": weight_layout()})


class ExpertQueues(wiring.Component):
    """Appends every route to its expert's queue, if it has any; then queues are looked up and walked.

    Nothing is moved or sorted: entries stay where they arrived, and each names the one behind it.

    Throughput: a queue is cleared a cycle, a route taken every third cycle. Latency of both read ports: one cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    clear : In(1), experts : In
        Pulse: forget all entries and empty the queues 0 to ``experts``, which is held until ``filled``. Not while
        routes are taken.
    routes : In(stream of route_layout(arch))
        Taken from the end of the clearing to the route marked ``last``; at most ``max_tokens`` to an expert.
    filled : Out(1)
        Pulse: that one is queued.
    arrived : Out
        Entries in all queues.
    expert : In, head, count : Out
        First port: place of the first entry of an expert's queue, and how many it has. Not while routes are taken.
    place : In, entry : Out(entry_layout(arch)), next : Out
        Second port: the entry at a place, and the place of the one behind it in its queue.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "clear": In(1),
                "experts": In(expert_bits(arch)),
                "routes": In(stream.Signature(route_layout(arch))),
                "filled": Out(1),
                "arrived": Out(range(arch.queue_entries + 1)),
                "expert": In(expert_bits(arch)),
                "head": Out(place_bits(arch)),
                "count": Out(count_bits(arch)),
                "place": In(place_bits(arch)),
                "entry": Out(entry_layout(arch)),
                "next": Out(place_bits(arch)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        m.submodules.queues = queues = Memory(shape=queue_layout(arch), depth=arch.max_experts + 1, init=[])
        m.submodules.entries = entries = Memory(shape=entry_layout(arch), depth=arch.queue_entries, init=[])
        m.submodules.links = links = Memory(shape=place_bits(arch), depth=arch.queue_entries, init=[])
        queue_write, queue_read = queues.write_port(), queues.read_port()
        entry_write, entry_read = entries.write_port(), entries.read_port()
        link_write, link_read = links.write_port(), links.read_port()

        route = Signal(route_layout(arch))
        queue = Signal(queue_layout(arch))
        occupied = queue.count != 0
        m.d.comb += [
            queue_read.addr.eq(self.expert),
            queue_write.addr.eq(route.expert),
            entry_write.addr.eq(self.arrived),
            entry_write.data.expert.eq(route.expert),
            entry_write.data.token.eq(route.token),
            entry_write.data.weight.eq(route.weight),
            link_write.addr.eq(queue.tail),
            link_write.data.eq(self.arrived),
            self.head.eq(queue_read.data.head),
            self.count.eq(queue_read.data.count),
            entry_read.addr.eq(self.place),
            link_read.addr.eq(self.place),
            self.entry.eq(entry_read.data),
            self.next.eq(link_read.data),
        ]

        cleared = Signal(expert_bits(arch))
        with m.FSM():
            with m.State("READ"):
                m.d.sync += cleared.eq(0)
                with m.If(self.clear):
                    m.d.sync += self.arrived.eq(0)
                    m.next = "CLEAR"

            with m.State("CLEAR"):
                m.d.comb += [queue_write.en.eq(1), queue_write.addr.eq(cleared)]
                m.d.sync += cleared.eq(cleared + 1)
                with m.If(cleared == self.experts):
                    m.next = "TAKE"

            with m.State("TAKE"):
                m.d.comb += [self.routes.ready.eq(1), queue_read.addr.eq(self.routes.payload.expert)]
                m.d.sync += route.eq(self.routes.payload)
                with m.If(self.routes.valid):
                    m.next = "LOOK"

            with m.State("LOOK"):  # a cycle of its own, as block RAM answers late
                m.d.sync += queue.eq(queue_read.data)
                m.next = "APPEND"

            with m.State("APPEND"):
                m.d.comb += [
                    entry_write.en.eq(1),
                    link_write.en.eq(occupied & ~route.none),
                    queue_write.en.eq(~route.none),
                    queue_write.data.head.eq(Mux(occupied, queue.head, self.arrived)),
                    queue_write.data.tail.eq(self.arrived),
                    queue_write.data.count.eq(queue.count + 1),
                ]
                m.d.sync += self.arrived.eq(self.arrived + 1)
                m.next = "TAKE"
                with m.If(route.last):
                    m.d.comb += self.filled.eq(1)
                    m.next = "READ"
        return m
