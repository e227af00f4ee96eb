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

    Latency and throughput: a token takes a cycle for each logit (two, if its softmax is over all experts), about 8
    for each choice and about 60 more; a gated shared expert takes another 50.

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
        shift = ARGUMENT_BITS - ARGUMENT_UNIT - exponent_a
        m.d.sync += [
            rows.eq(layer.experts + layer.shared_gate),
            memory.groups.eq(router_groups(arch, layer)),
            exponent_a.eq(memory.base_exponent + layer.router_exponent),
            exponential.shift.eq(Mux(shift < 0, 0, Mux(shift > 127, 127, shift))),
        ]
        m.d.comb += [
            memory.slot.eq(slot),
            memory.tokens.eq(layer.tokens),
            topk.entry.key.eq(memory.o_logit),
            topk.entry.index.eq(memory.o_row),
            self.busy.eq(memory.full),
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
            route.token.eq(memory.first_token + slot),
            route.expert.eq(Mux(shared, layer.experts, chosen_read.data)),
            route.weight.mantissa.eq(Mux(one, 1 << 15, weight.mantissa)),
            route.weight.exponent.eq(Mux(one, -15, weight.exponent)),
            route.last.eq(last_entry & (shared | (layer.shared_blocks == 0)) & last_slot & memory.last_job),
        ]

        with m.FSM():
            with m.State("STORE"):
                m.d.sync += slot.eq(0)
                with m.If(memory.full):
                    m.next = "START"

            with m.State("START"):
                m.d.comb += [memory.start.eq(1), topk.clear.eq(1), softmax.start.eq(1)]
                m.d.sync += [memory.rows.eq(rows), entry.eq(0), entries.eq(layer.top_k)]
                m.next = "CHOOSE"

            with m.State("CHOOSE"):
                m.d.comb += topk.valid.eq(memory.o_valid & (memory.o_row != layer.experts))
                m.d.sync += gate.eq(memory.o_logit)  # the gate's row, if there is one, is the last
                with m.If(memory.o_valid & memory.o_last):
                    m.next = "LARGEST"

            with m.State("LARGEST"):
                m.d.sync += [largest.eq(topk.front.key), memory.rows.eq(layer.experts)]
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
                    m.d.comb += memory.start.eq(~layer.normalise)
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
                # Over all experts: their logits are scanned again. Otherwise the memory is silent.
                m.d.comb += [
                    exponential.valid.eq(memory.o_valid),
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
                        m.d.sync += shared.eq(0)
                        m.next = "START"
                        with m.If(last_slot):
                            m.d.comb += [memory.release.eq(1), self.job_done.eq(1)]
                            m.next = "STORE"
                        with m.Else():
                            m.d.sync += slot.eq(slot + 1)
        return m
