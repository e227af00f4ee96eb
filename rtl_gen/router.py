"""The router unit: stores the logits of a job, then chooses and weighs the experts of each token."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moe_hw.arch import ACC_BITS, EXP_BITS, Arch
from rtl_gen.exponential import ARGUMENT_BITS, ARGUMENT_UNIT, Exponential
from rtl_gen.logit_memory import LogitMemory
from rtl_gen.softmax import Softmax
from rtl_gen.topk import TopK
from rtl_gen.types import expert_bits, layer_layout, result_layout, route_layout, router_groups, slot_bits


class Router(wiring.Component):
    """Turns the router's accumulators into routes.

    Results are stored, one word a cycle, until the one marked ``last``; then no more are taken until the job is
    routed.

    Latency and throughput: a token takes a cycle for each logit and about 10 more, and then about 8 for each choice and
    50 more, and another 50 for a gated shared expert. The second part overlaps the first of the next token,
    unless the softmax is over all experts: then it takes another cycle for each logit.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    results : In(stream of result_layout)
        Accumulators of kind ROUTER; tokens in order.
    layer : In(layer_layout)
        Stable from two cycles before the first result to the last route.
    routes : Out(stream of route_layout)
        For each token its choices in descending order, then the shared expert's entry if there is one.
    busy : Out(1)
        A job is stored and not yet routed.
    job_done : Out(1)
        Pulse: it is routed.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "results": In(stream.Signature(result_layout(arch))),
                "layer": In(layer_layout()),
                "routes": Out(stream.Signature(route_layout(arch))),
                "busy": Out(1),
                "job_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer

        m.submodules.memory = memory = LogitMemory(arch)
        m.submodules.topk = topk = TopK(arch.max_top_k, ACC_BITS, expert_bits(arch))
        m.submodules.exponential = exponential = Exponential()
        m.submodules.softmax = softmax = Softmax(arch)
        wiring.connect(m, wiring.flipped(self.results), memory.results)
        slot = Signal(slot_bits(arch))
        last_slot = slot == memory.last_slot
        rows = Signal.like(memory.rows)
        exponent_a = Signal(signed(EXP_BITS + 1))
        distance = ARGUMENT_BITS - ARGUMENT_UNIT - exponent_a
        shift = Signal.like(exponential.shift)
        m.d.sync += [
            rows.eq(layer.experts + layer.shared_gate),
            memory.groups.eq(router_groups(arch, layer)),
            exponent_a.eq(memory.base_exponent + layer.router_exponent),
            shift.eq(Mux(distance < 0, 0, Mux(distance > 127, 127, distance))),
        ]
        # What the weights of a token need, while the next one is scanned.
        weighing = Signal()
        token = Signal.like(self.routes.payload.token)
        last_token, last_of_job = Signal(), Signal()
        last_logit = Signal(signed(ACC_BITS))
        m.d.comb += [
            memory.slot.eq(slot),
            memory.tokens.eq(layer.tokens),
            topk.entry.key.eq(memory.o_logit),
            topk.entry.index.eq(memory.o_row),
            self.busy.eq(memory.full | weighing),
        ]

        # The choices of a token; or, when `shared`, the one entry of the shared expert.
        shared = Signal()
        entry = Signal(range(arch.max_top_k))
        entries = Signal(range(arch.max_top_k + 1))
        last_entry = entry == entries - 1
        largest = Signal(signed(ACC_BITS))
        gate = Signal(signed(ACC_BITS))
        m.submodules.chosen = chosen = Memory(shape=expert_bits(arch), depth=arch.max_top_k, init=[])
        chosen_write, chosen_read = chosen.write_port(), chosen.read_port()
        m.d.comb += [
            chosen_write.addr.eq(entry),
            chosen_write.data.eq(topk.front.index),
            chosen_read.addr.eq(entry),
            softmax.count.eq(entries),
            softmax.terms_follow.eq(~shared & ~layer.normalise),
            softmax.sigmoid.eq(shared),
            softmax.positive.eq(~gate[-1]),
            softmax.valid.eq(exponential.o_valid),
            softmax.last.eq(exponential.o_last),
            softmax.term.eq(exponential.o),
        ]

        route = self.routes.payload
        weight = softmax.weights.payload
        one = shared & ~layer.shared_gate  # a shared expert without a gate
        m.d.comb += [
            route.token.eq(token),
            route.expert.eq(Mux(shared, layer.experts, chosen_read.data)),
            route.weight.mantissa.eq(Mux(one, 1 << 15, weight.mantissa)),
            route.weight.exponent.eq(Mux(one, -15, weight.exponent)),
            route.last.eq(last_entry & (shared | (layer.shared_blocks == 0)) & last_token),
        ]

        scanned, taken = Signal(), Signal()
        with m.FSM():
            with m.State("STORE"):
                m.d.sync += slot.eq(0)
                with m.If(memory.full):
                    m.next = "START"

            with m.State("START"):
                m.d.comb += [memory.start.eq(1), topk.clear.eq(1)]
                m.d.sync += memory.rows.eq(rows)
                m.next = "CHOOSE"

            with m.State("CHOOSE"):
                m.d.comb += topk.valid.eq(memory.o_valid & (memory.o_row != layer.experts))
                m.d.sync += last_logit.eq(memory.o_logit)  # the gate's row, if there is one, is the last
                with m.If(memory.o_valid & memory.o_last):
                    m.next = "SCANNED"

            with m.State("SCANNED"):
                m.d.comb += scanned.eq(1)
                with m.If(taken):
                    m.next = "ADVANCE"

            # A softmax over all experts scans this token again.
            with m.State("ADVANCE"), m.If(layer.normalise | ~weighing):
                m.d.sync += slot.eq(slot + 1)
                m.next = "START"
                with m.If(last_slot):
                    m.d.comb += memory.release.eq(1)
                    m.next = "STORE"

        with m.FSM():
            with m.State("WAIT"):
                m.d.sync += [
                    largest.eq(topk.front.key),
                    gate.eq(last_logit),
                    exponential.shift.eq(shift),
                    token.eq(memory.first_token + slot),
                    last_token.eq(last_slot & memory.last_job),
                    last_of_job.eq(last_slot),
                    entry.eq(0),
                    entries.eq(layer.top_k),
                ]
                with m.If(scanned):
                    m.d.comb += softmax.start.eq(1)
                    m.d.sync += [weighing.eq(1), memory.rows.eq(layer.experts)]
                    m.next = "CHOICES"

            with m.State("CHOICES"):
                m.d.comb += [
                    exponential.valid.eq(1),
                    exponential.last.eq(last_entry & layer.normalise),
                    exponential.minuend.eq(largest),
                    exponential.subtrahend.eq(topk.front.key),
                    topk.pop.eq(1),
                    chosen_write.en.eq(1),
                ]
                m.d.sync += entry.eq(entry + 1)
                with m.If(last_entry):
                    m.d.comb += [taken.eq(1), memory.start.eq(~layer.normalise)]
                    m.d.sync += entry.eq(0)
                    m.next = "EMIT"

            with m.State("GATE"):
                m.d.comb += [softmax.start.eq(1), exponential.valid.eq(1), exponential.last.eq(1)]
                with m.If(gate < 0):
                    m.d.comb += exponential.subtrahend.eq(gate)
                with m.Else():
                    m.d.comb += exponential.minuend.eq(gate)
                m.next = "EMIT"

            with m.State("EMIT"):
                # Over all experts: their logits are scanned again. Otherwise those of the next token may be.
                m.d.comb += [
                    exponential.valid.eq(memory.o_valid & ~layer.normalise),
                    exponential.last.eq(memory.o_last),
                    exponential.minuend.eq(largest),
                    exponential.subtrahend.eq(memory.o_logit),
                    self.routes.valid.eq(softmax.weights.valid | one),
                    softmax.weights.ready.eq(self.routes.ready),
                ]
                with m.If(self.routes.valid & self.routes.ready):
                    with m.If(~last_entry):
                        m.d.sync += entry.eq(entry + 1)
                    with m.Elif(~shared & (layer.shared_blocks != 0)):
                        m.d.sync += [shared.eq(1), entry.eq(0), entries.eq(1)]
                        with m.If(layer.shared_gate):
                            m.next = "GATE"
                    with m.Else():
                        m.d.comb += self.job_done.eq(last_of_job)
                        m.d.sync += [shared.eq(0), weighing.eq(0)]
                        m.next = "WAIT"
        return m
