"""Sends jobs to the array: fills the slot table, has their vectors loaded, and keeps passes apart."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moe_hw.arch import Arch
from rtl_gen.expert_queues import entry_layout
from rtl_gen.types import (
    Kind,
    SlotRead,
    address_bits,
    fetch_layout,
    job_layout,
    layer_layout,
    place_bits,
    slot_layout,
    token_bits,
)
from rtl_gen.walk import Step, work_layout

OUTSTANDING = 15
"""Jobs whose results may not have arrived yet."""


def work_members(arch: Arch) -> dict[str, wiring.Member]:
    """Members towards the blocks that do the work, which the scheduler passes on; see :class:`Dispatcher`."""
    return {
        "layer": In(layer_layout()),
        "input_address": In(address_bits(arch)),
        "hidden_address": In(address_bits(arch)),
        "fetches": Out(stream.Signature(fetch_layout(arch))),
        "loaded": In(1),
        "jobs": Out(stream.Signature(job_layout(arch))),
        "released": In(1),
        "slot": In(SlotRead(arch)),
        "job_done": In(3),
        "written": In(1),
        "store": Out(1),
        "stored": In(1),
        "loading": Out(1),
        "storing": Out(1),
    }


class Dispatcher(wiring.Component):
    """Turns the walk's works into jobs. While the array works on one, the vectors of the next are loaded.

    The inputs of a job are fetched slot by slot. Hidden activations lie together, in the order of the jobs that made
    them, which is that of the jobs that use them.

    Latency and throughput: five cycles a slot, or five and two a slot for hidden activations; then as long as the
    vectors take.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout), input_address, hidden_address : In
        The batch at hand; addresses in units of 64 bytes.
    works : In(stream of work_layout)
    place : Out, entry : In(entry_layout), next : In
        Read port of the expert queues, one cycle later.
    fetches : Out(stream of fetch_layout), loaded : In(1)
        Vectors to load; pulse: all of a job are in the vector buffer.
    jobs : Out(stream of job_layout), released : In(1)
        To the sequencer, and from it: a half of the slot table and the vector buffer is free.
    slot : In(SlotRead)
        The slot table.
    job_done : In(3)
        Pulses: a job's results have all arrived; in the router, in memory, or in the combine buffer.
    written : In(1)
        The writer has nothing to do.
    store : Out(1), stored : In(1)
        Pulse: write the chunk's outputs; they are written.
    loading, storing, idle : Out(1)
        What it does: loads vectors or waits for them to be written; writes outputs; nothing.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                **work_members(arch),
                "works": In(stream.Signature(work_layout(arch))),
                "place": Out(place_bits(arch)),
                "entry": In(entry_layout(arch)),
                "next": In(place_bits(arch)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer
        work = self.works.payload

        # ---- jobs under way ----
        halves_used = Signal(2)
        outstanding = Signal(range(OUTSTANDING + 1))
        begin = Signal()
        done = sum((bit for bit in self.job_done), start=0)
        m.d.sync += [
            halves_used.eq(halves_used + begin - self.released),
            outstanding.eq(outstanding + begin - done),
        ]

        # ---- the job at hand, slot by slot ----
        job = self.jobs.payload
        fetch = self.fetches.payload
        unused = Signal()
        router = job.kind == Kind.ROUTER
        by_token = router | job.shared | unused
        down = job.kind == Kind.DOWN
        choices = Signal(5)  # of a token
        token = Signal(token_bits(arch))
        index = Signal.like(self.slot.index)
        last = index == job.slots - 1
        stride = Signal(11)
        product = Signal(address_bits(arch))
        number = Signal(max(len(token), len(job.slots)))
        hidden = Signal(address_bits(arch))  # where the next job's hidden activations lie
        m.d.sync += [
            choices.eq(layer.top_k + (layer.shared_blocks != 0)),
            stride.eq(Mux(down, fetch.blocks, layer.input_blocks << 1)),
            product.eq(number * stride),
        ]
        m.submodules.slots = slots = Memory(shape=slot_layout(arch), depth=2 * arch.slots, init=[])
        write, read = slots.write_port(), slots.read_port()

        def slot_address(half: Signal, slot: Signal) -> Cat:
            return Cat(slot[: exact_log2(arch.slots)], half)

        this_token = Signal.like(token)
        m.d.comb += [
            read.addr.eq(slot_address(self.slot.half, self.slot.index)),
            self.slot.data.eq(read.data),
            this_token.eq(Mux(by_token, token, self.entry.token)),
            write.addr.eq(slot_address(job.half, index)),
            write.data.token.eq(this_token),
            write.data.unused.eq(unused),
            write.data.weight.eq(self.entry.weight),
            fetch.blocks.eq(Mux(down, Mux(job.shared, layer.shared_blocks, layer.inter_blocks), layer.input_blocks)),
            fetch.lines.eq(Mux(down, product, Mux(router, layer.input_blocks << 1, layer.input_blocks))),
            fetch.hidden.eq(down),
            fetch.half.eq(job.half),
            fetch.slot.eq(Mux(down, job.slots - 1, index)),
            fetch.last.eq(down | last),
        ]
        arrived = Signal()
        with m.If(self.loaded):
            m.d.sync += arrived.eq(1)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.idle.eq(~self.works.valid & (outstanding == 0))
                m.d.sync += [arrived.eq(0), index.eq(0)]
                with m.If(self.works.valid), m.Switch(work.step):
                    with m.Case(Step.JOB):
                        m.d.comb += [
                            begin.eq((halves_used != 2) & (outstanding != OUTSTANDING)),
                            self.works.ready.eq(begin),
                        ]
                    with m.Case(Step.BARRIER):
                        m.d.sync += hidden.eq(self.hidden_address)
                        m.d.comb += [
                            self.loading.eq(1),
                            self.works.ready.eq((outstanding == 0) & self.written),
                        ]
                    with m.Case(Step.STORE):
                        m.d.sync += hidden.eq(self.hidden_address)
                        m.d.comb += self.store.eq(outstanding == 0)
                        with m.If(self.store):
                            m.next = "STORE"
                with m.If(begin):
                    m.d.sync += [
                        job.kind.eq(work.kind),
                        job.shared.eq(work.shared),
                        job.half.eq(~job.half),
                        job.slots.eq(work.slots),
                        job.groups.eq(work.groups),
                        job.bits.eq(work.bits),
                        unused.eq(work.unused),
                        number.eq(work.slots),
                    ]
                    with m.If(work.fresh):
                        m.d.sync += [token.eq(0), self.place.eq(Mux(work.shared, layer.top_k, work.head))]
                    m.next = "READ"
                    with m.If(work.kind == Kind.DOWN):
                        m.next = "STRIDE"

            with m.State("STRIDE"):
                m.d.comb += self.loading.eq(1)
                m.next = "PRODUCT"
            with m.State("READ"):
                m.d.comb += self.loading.eq(1)
                m.next = "ENTRY"
            with m.State("ENTRY"):
                m.d.comb += [self.loading.eq(1), write.en.eq(1)]
                m.d.sync += [
                    fetch.token.eq(this_token),
                    number.eq(this_token),
                    token.eq(token + 1),
                    self.place.eq(Mux(by_token, self.place + choices, self.next)),
                ]
                m.next = "PRODUCT"
                with m.If(down):
                    m.d.sync += index.eq(index + 1)
                    m.next = "READ"
                    with m.If(last):
                        m.next = "WAIT"
            with m.State("PRODUCT"):
                m.d.comb += self.loading.eq(1)
                m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.d.comb += self.loading.eq(1)
                m.d.sync += fetch.address.eq(Mux(down, hidden, self.input_address + product))
                m.next = "FETCH"
            with m.State("FETCH"):
                m.d.comb += [self.loading.eq(1), self.fetches.valid.eq(1)]
                with m.If(self.fetches.ready):
                    m.next = "READ"
                    with m.If(down):
                        m.d.sync += hidden.eq(hidden + product)
                    with m.Else():
                        m.d.sync += index.eq(index + 1)
                        with m.If(last):
                            m.next = "WAIT"
            with m.State("WAIT"):
                m.d.comb += self.loading.eq(1)
                with m.If(arrived | self.loaded):
                    m.next = "JOB"
            with m.State("JOB"):
                m.d.comb += self.jobs.valid.eq(1)
                with m.If(self.jobs.ready):
                    m.next = "IDLE"
            with m.State("STORE"):
                m.d.comb += self.storing.eq(1)
                with m.If(self.stored):
                    m.d.comb += self.works.ready.eq(1)
                    m.next = "IDLE"
        return m
