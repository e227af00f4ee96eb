"""The router unit: stores the logits of a job, then chooses and weighs the experts of each token."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moe_hw.arch import ACC_BITS, EXP_BITS, Arch
from rtl_gen.exponential import ARGUMENT_BITS, ARGUMENT_UNIT, Exponential
from rtl_gen.logit_memory import LogitMemory
from rtl_gen.softmax import Softmax
from rtl_gen.topk import TopK
from rtl_gen.types import (
    expert_bits,
    layer_layout,
    result_layout,
    route_layout,
    router_groups,
    slot_bits,
    token_bits,
)

TOKENS = 2
"""Tokens that can be weighed at once."""


def token_layout(arch: Arch) -> data.StructLayout:
    """What is known of a token that is weighed; ``last`` of its batch or of its job."""
    return data.StructLayout({"token": token_bits(arch), "last": 1, "last_of_job": 1})


class Router(wiring.Component):
    """Turns the router's accumulators into routes.

    Results are stored, one word a cycle, until the one marked ``last``; then no more are taken until the job is
    routed.

    Three steps, each of another token, or of the same again: a **scan** of the logits finds the choices; their
    exponentials are **weighed**, after another scan if the softmax is over all experts; the routes are **emitted**.

    Latency and throughput: a scan takes a cycle for each logit and about 10 more, the exponentials one for each choice
    and 20 more, twice that with a gated shared expert. Routes take 8 cycles each and about 30 more, and 30 for a gate.
    The first scan and the exponentials of the next token overlap the routes, and a softmax over the choices the scan.

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

        # The tokens that are weighed: the one whose exponentials are added up, and the one before, whose routes leave.
        m.submodules.tokens = tokens = SyncFIFOBuffered(width=token_layout(arch).size, depth=TOKENS)
        newest, oldest = data.View(token_layout(arch), tokens.w_data), data.View(token_layout(arch), tokens.r_data)
        entry_bits = ceil_log2(arch.max_top_k)
        m.submodules.chosen = chosen = Memory(shape=expert_bits(arch), depth=TOKENS << entry_bits, init=[])
        chosen_write, chosen_read = chosen.write_port(), chosen.read_port()
        m.d.comb += [
            memory.slot.eq(slot),
            memory.tokens.eq(layer.tokens),
            topk.entry.key.eq(memory.o_logit),
            topk.entry.index.eq(memory.o_row),
            newest.token.eq(memory.first_token + slot),
            newest.last.eq(last_slot & memory.last_job),
            newest.last_of_job.eq(last_slot),
            self.busy.eq(memory.full | (tokens.level != 0)),
        ]

        # ---- scan: the choices of a token ----
        last_logit = Signal(signed(ACC_BITS))
        scanned, taken, scanned_again = Signal(), Signal(), Signal()
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
            with m.State("ADVANCE"), m.If(layer.normalise | scanned_again):
                m.d.sync += slot.eq(slot + 1)
                m.next = "START"
                with m.If(last_slot):
                    m.d.comb += memory.release.eq(1)
                    m.next = "STORE"

        # ---- weigh: the exponentials of the choices, of all experts, of a shared expert's gate ----
        bank = Signal()
        entry = Signal(range(arch.max_top_k))
        last_entry = entry == layer.top_k - 1
        largest = Signal(signed(ACC_BITS))
        gate = Signal(signed(ACC_BITS))
        m.d.comb += [
            chosen_write.addr.eq(Cat(entry[:entry_bits], bank)),
            chosen_write.data.eq(topk.front.index),
            softmax.count.eq(layer.top_k),
            softmax.terms_follow.eq(~layer.normalise),
            softmax.positive.eq(~gate[-1]),
            softmax.valid.eq(exponential.o_valid),
            softmax.last.eq(exponential.o_last),
            softmax.term.eq(exponential.o),
        ]
        with m.FSM():
            with m.State("WAIT"), m.If(scanned & softmax.ready & tokens.w_rdy):
                m.d.comb += [softmax.start.eq(1), tokens.w_en.eq(1)]
                m.d.sync += [
                    largest.eq(topk.front.key),
                    gate.eq(last_logit),
                    exponential.shift.eq(shift),
                    scanned_again.eq(0),
                    memory.rows.eq(layer.experts),
                ]
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
                    m.d.sync += [entry.eq(0), bank.eq(~bank)]
                    m.next = "ALL"
                    with m.If(layer.normalise):
                        m.next = "SHARED"

            with m.State("ALL"):
                m.d.comb += [
                    exponential.valid.eq(memory.o_valid),
                    exponential.last.eq(memory.o_last),
                    exponential.minuend.eq(largest),
                    exponential.subtrahend.eq(memory.o_logit),
                ]
                with m.If(memory.o_valid & memory.o_last):
                    m.d.sync += scanned_again.eq(1)
                    m.next = "SHARED"

            with m.State("SHARED"):
                with m.If(~layer.shared_gate):
                    m.next = "WAIT"
                with m.Elif(softmax.ready):
                    m.next = "GATE"

            with m.State("GATE"):
                m.d.comb += [
                    softmax.start.eq(1),
                    softmax.sigmoid.eq(1),
                    softmax.count.eq(1),
                    softmax.terms_follow.eq(0),
                    exponential.valid.eq(1),
                    exponential.last.eq(1),
                ]
                with m.If(gate < 0):
                    m.d.comb += exponential.subtrahend.eq(gate)
                with m.Else():
                    m.d.comb += exponential.minuend.eq(gate)
                m.next = "WAIT"

        # ---- emit: a route for each choice, and for the shared expert ----
        emitted = Signal.like(entry)
        emitting = Signal()  # the bank of the oldest token
        shared = Signal()
        end_of_choices = emitted == layer.top_k - 1
        has_shared = layer.shared_blocks != 0
        end_of_token = shared | (end_of_choices & ~has_shared)
        one = shared & ~layer.shared_gate  # a shared expert without a gate
        route = self.routes.payload
        weight = softmax.weights.payload
        m.d.comb += [
            chosen_read.addr.eq(Cat(emitted[:entry_bits], emitting)),
            route.token.eq(oldest.token),
            route.expert.eq(Mux(shared, layer.experts, chosen_read.data)),
            route.weight.mantissa.eq(Mux(one, 1 << 15, weight.mantissa)),
            route.weight.exponent.eq(Mux(one, -15, weight.exponent)),
            route.last.eq(end_of_token & oldest.last),
        ]
        with m.FSM():
            with m.State("READ"), m.If(tokens.r_rdy):
                m.next = "EMIT"
            with m.State("EMIT"):
                m.d.comb += [
                    self.routes.valid.eq(softmax.weights.valid | one),
                    softmax.weights.ready.eq(self.routes.ready & ~one),
                ]
                with m.If(self.routes.valid & self.routes.ready):
                    m.d.sync += [emitted.eq(emitted + 1), shared.eq(end_of_choices & has_shared)]
                    with m.If(end_of_choices | shared):
                        m.d.sync += emitted.eq(0)
                    with m.If(end_of_token):
                        m.d.comb += [tokens.r_en.eq(1), self.job_done.eq(oldest.last_of_job)]
                        m.d.sync += [emitting.eq(~emitting), shared.eq(0)]
                    m.next = "READ"
        return m
