"""A proof that a queue holds the routes of its expert in order of arrival, each exactly once."""

from __future__ import annotations

import pytest
from amaranth.hdl import Assert, Assume, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from moe_hw.arch import Arch
from rtl_gen.expert_queues import ExpertQueues, entry_layout
from rtl_gen.types import expert_bits, route_layout
from sim.formal import prove

ARCH = Arch(max_tokens=2, max_experts=2, max_top_k=1)
"""Two tokens, two experts and the shared one: four entries in three queues."""


class ExpertQueuesSpecification(wiring.Component):
    """Watches one expert, any of them, and one route to it, any of those: it is found at its number in the queue.

    A batch is cleared, filled and walked from the watched queue's head, as often as the depth of the search allows.

    Parameters:
        newest_first: claim the wrong order.
    """

    def __init__(self, newest_first: bool = False):
        self.newest_first = newest_first
        super().__init__(
            {
                "clear": In(1),
                "experts": In(expert_bits(ARCH)),
                "valid": In(1),
                "route": In(route_layout(ARCH)),
                "watched": In(expert_bits(ARCH)),
                "number": In(range(ARCH.max_tokens)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.queues = queues = ExpertQueues(ARCH)
        m.d.comb += [
            queues.clear.eq(self.clear),
            queues.experts.eq(self.experts),
            queues.routes.valid.eq(self.valid),
            queues.routes.payload.eq(self.route),
            queues.expert.eq(self.watched),
            Assume((self.experts >= 1) & (self.experts <= ARCH.max_experts)),
            Assume((self.route.expert <= self.experts) & (self.watched <= self.experts)),
            # Weights pass unchanged: a few bits tell them apart.
            Assume((self.route.weight.mantissa < 4) & (self.route.weight.exponent == 0)),
        ]

        # The choices of what to watch hold for ever.
        started = Signal()
        constants = ((self.experts, "experts"), (self.watched, "watched"), (self.number, "number"))
        m.d.sync += started.eq(1)
        for value, name in constants:
            before = Signal.like(value, name=f"{name}_before")
            m.d.sync += before.eq(value)
            with m.If(started):
                m.d.comb += Assume(value == before)

        # What was sent.
        filling = Signal()
        count = Signal(range(ARCH.max_tokens + 1))  # routes to the watched expert
        total = Signal(range(ARCH.queue_entries + 1))
        watched = Signal(entry_layout(ARCH))  # the route
        taken = queues.routes.valid & queues.routes.ready
        mine = (self.route.expert == self.watched) & ~self.route.none
        with m.If(taken):
            m.d.comb += Assume((total != ARCH.queue_entries) & ~(mine & (count == ARCH.max_tokens)))
            m.d.sync += total.eq(total + 1)
            with m.If(mine):
                m.d.sync += count.eq(count + 1)
                with m.If(count == self.number):
                    m.d.sync += [getattr(watched, name).eq(getattr(self.route, name)) for name, _ in entry_layout(ARCH)]
        with m.If(queues.filled):
            m.d.sync += filling.eq(0)
        with m.If(self.clear):
            m.d.comb += Assume(~filling)
            m.d.sync += [filling.eq(1), count.eq(0), total.eq(0)]

        # The walk: a cycle for the queue, then a cycle for each entry.
        filled = Signal()
        looked = Signal()
        walking = Signal()
        step = Signal(range(ARCH.max_tokens + 1))
        m.d.sync += [filled.eq(queues.filled), looked.eq(filled), walking.eq(looked & ~filling)]
        wanted = count - 1 - self.number if self.newest_first else self.number
        with m.If(looked):
            m.d.comb += [Assert(queues.count == count), Assert(queues.arrived == total)]
            m.d.comb += queues.place.eq(queues.head)
            m.d.sync += step.eq(0)
        with m.If(walking):
            m.d.comb += queues.place.eq(queues.next)
            with m.If(step != count):
                m.d.sync += [step.eq(step + 1), walking.eq(~filling)]
                m.d.comb += Assert(queues.entry.expert == self.watched)
                with m.If((step == wanted) & (self.number < count)):
                    m.d.comb += Assert(queues.entry == watched)
        with m.If(self.clear):
            m.d.comb += Assume(~(filled | looked | walking))
        return m


def test_queues_keep_order() -> None:
    prove(ExpertQueuesSpecification(), depth=20)


def test_the_proof_can_fail() -> None:
    with pytest.raises(AssertionError, match="Assert failed"):
        prove(ExpertQueuesSpecification(newest_first=True), depth=14)
