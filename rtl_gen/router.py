"""The router unit: stores the logits of a job, then chooses and weighs the experts of each token."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import ACC_BITS, EXP_BITS, Arch
from rtl_gen.correction import ENTRY_BITS
from rtl_gen.exponential import ARGUMENT_BITS, ARGUMENT_UNIT, FRACTION_ONE, Exponential
from rtl_gen.groups import Groups
from rtl_gen.keys import Keys
from rtl_gen.logit_memory import LogitMemory
from rtl_gen.route_sender import RouteSender
from rtl_gen.sigmoid import FIXED_BITS, FIXED_UNIT
from rtl_gen.topk import TopK
from rtl_gen.types import expert_bits, layer_layout, result_layout, route_layout, router_groups, slot_bits
from rtl_gen.weigh import Weigh


class Router(wiring.Component):
    """Turns the router's accumulators into routes.

    Results are stored, one word a cycle, until the one marked ``last``; then no more are taken until the job is
    routed.

    Three steps, each of another token, or of the same again: **scans** of the logits find the best groups and the
    choices; the choices are **weighed**: their exponentials, after another scan if the softmax is over all experts, or
    their sigmoids, of logits that are read again; the routes are **sent**.

    Latency and throughput: a scan takes a cycle for each logit and about 30 more, the exponentials one for each choice
    and 20 more, the sigmoids 30 more, twice that with a gated shared expert. Routes take 8 cycles each and about 30
    more, and 30 for a gate. The first scan and the exponentials of the next token overlap the routes, and a softmax
    over the choices the scan.

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
    loaded : In(1), expert : Out, correction : In(32, signed)
        The correction table can be read; its read port, as of ``Correction``.
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
                "loaded": In(1),
                "expert": Out(expert_bits(arch)),
                "correction": In(signed(ENTRY_BITS)),
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
        m.submodules.keys = keys = Keys(arch)
        m.submodules.groups = groups = Groups(arch)
        m.submodules.topk = topk = TopK(arch.max_top_k, ACC_BITS, expert_bits(arch))
        m.submodules.exponential = exponential = Exponential()
        m.submodules.weigh = weigh = Weigh(arch)
        m.submodules.sender = sender = RouteSender(arch)
        wiring.connect(m, wiring.flipped(self.results), memory.results)
        wiring.connect(m, weigh.weights, sender.weights)
        wiring.connect(m, sender.routes, wiring.flipped(self.routes))
        for block in (keys, groups, sender):
            m.d.comb += block.layer.eq(layer)

        slot = Signal(slot_bits(arch))
        scanning_again = Signal()
        last_slot = slot == memory.last_slot
        rows = Signal.like(memory.rows)
        exponent_a = Signal(signed(EXP_BITS + 1))
        shift = Signal.like(exponential.shift)

        def limited(distance: Value) -> Value:
            return Mux(distance < 0, 0, Mux(distance > 127, 127, distance))

        m.d.sync += [
            rows.eq(layer.experts + layer.shared_gate),
            memory.groups.eq(router_groups(arch, layer)),
            exponent_a.eq(memory.base_exponent + layer.router_exponent),
            shift.eq(limited(ARGUMENT_BITS - ARGUMENT_UNIT - exponent_a)),
            keys.shift.eq(limited(FIXED_BITS - FIXED_UNIT - exponent_a)),
        ]
        m.d.comb += [
            memory.slot.eq(slot),
            memory.tokens.eq(layer.tokens),
            keys.valid.eq(memory.o_valid & ~scanning_again),
            keys.last.eq(memory.o_last),
            keys.row.eq(memory.o_row),
            keys.logit.eq(memory.o_logit),
            self.expert.eq(keys.expert),
            keys.correction.eq(self.correction),
            groups.key.eq(keys.o_key),
            groups.group.eq(topk.front.index),
            topk.entry.key.eq(groups.o_key),
            topk.entry.index.eq(groups.o_index),
            self.busy.eq(memory.full | sender.busy),
            self.job_done.eq(sender.job_done),
        ]

        # ---- scan: the best groups, then the choices of a token ----
        last_logit = Signal(signed(ACC_BITS))
        kept = Signal.like(layer.kept_groups)
        scanned, taken, scanned_again = Signal(), Signal(), Signal()
        with m.FSM():
            with m.State("STORE"):
                m.d.sync += slot.eq(0)
                with m.If(memory.full & self.loaded):
                    m.next = "START"

            with m.State("START"):
                m.d.comb += [memory.start.eq(1), topk.clear.eq(1), groups.clear.eq(1)]
                m.d.sync += [memory.rows.eq(rows), groups.grouping.eq(layer.group_size != 0)]
                m.next = "SCAN"

            with m.State("SCAN"):
                m.d.comb += [
                    groups.valid.eq(keys.o_valid & (keys.o_row != layer.experts)),
                    groups.last.eq(keys.o_valid & keys.o_last),
                    topk.valid.eq(groups.o_valid),
                ]
                with m.If(memory.o_valid):
                    m.d.sync += last_logit.eq(memory.o_logit)  # the gate's row, if there is one, is the last
                with m.If(groups.o_last):
                    m.next = "SCANNED"
                    with m.If(groups.grouping):
                        m.d.sync += kept.eq(1)
                        m.next = "KEEP"

            with m.State("KEEP"):
                m.d.comb += [groups.keep.eq(1), topk.pop.eq(1)]
                m.d.sync += kept.eq(kept + 1)
                with m.If(kept == layer.kept_groups):
                    m.next = "START AGAIN"

            with m.State("START AGAIN"):
                m.d.comb += [memory.start.eq(1), topk.clear.eq(1)]
                m.d.sync += groups.grouping.eq(0)
                m.next = "SCAN"

            with m.State("SCANNED"):
                m.d.comb += scanned.eq(1)
                with m.If(taken):
                    m.next = "ADVANCE"

            # A softmax over all experts scans this token again.
            with m.State("ADVANCE"), m.If(layer.normalise | layer.sigmoid | scanned_again):
                m.d.sync += slot.eq(slot + 1)
                m.next = "START"
                with m.If(last_slot):
                    m.d.comb += memory.release.eq(1)
                    m.next = "STORE"

        # ---- weigh: terms of the choices, of all experts, of a shared expert's gate ----
        entry = Signal(range(arch.max_top_k))
        last_entry = entry == layer.top_k - 1
        largest = Signal(signed(ACC_BITS))
        gate = Signal(signed(ACC_BITS))
        m.d.comb += [
            sender.tokens.payload.token.eq(memory.first_token + slot),
            sender.tokens.payload.last.eq(last_slot & memory.last_job),
            sender.tokens.payload.last_of_job.eq(last_slot),
            sender.choice.eq(topk.front.index),
            sender.last_choice.eq(last_entry),
            weigh.count.eq(layer.top_k),
            weigh.terms_follow.eq(~layer.normalise),
            weigh.initial.eq(Mux(layer.sigmoid, Mux(layer.normalise, layer.epsilon, FRACTION_ONE), 0)),
            weigh.scale_mantissa.eq(layer.scale[:16]),
            weigh.scale_exponent.eq(layer.scale[16:].as_signed()),
            weigh.valid.eq(exponential.o_valid),
            weigh.last.eq(exponential.o_last),
            weigh.term.eq(exponential.o),
        ]

        def choose(following: str) -> None:
            m.d.comb += [topk.pop.eq(1), sender.choose.eq(1)]
            m.d.sync += entry.eq(entry + 1)
            with m.If(last_entry):
                m.d.sync += entry.eq(0)
                m.next = following

        with m.FSM():
            with m.State("WAIT"), m.If(scanned & weigh.ready & sender.tokens.ready):
                m.d.comb += [weigh.start.eq(1), sender.tokens.valid.eq(1)]
                m.d.sync += [
                    largest.eq(topk.front.key),
                    gate.eq(last_logit),
                    exponential.shift.eq(shift),
                    scanned_again.eq(0),
                    memory.rows.eq(layer.experts),
                ]
                m.next = "CHOICES"
                with m.If(layer.sigmoid):
                    m.next = "READ"

            with m.State("CHOICES"):
                m.d.comb += [
                    exponential.valid.eq(1),
                    exponential.last.eq(last_entry & layer.normalise),
                    exponential.minuend.eq(largest),
                    exponential.subtrahend.eq(topk.front.key),
                ]
                choose("ALL")
                with m.If(last_entry):
                    m.d.comb += [taken.eq(1), memory.start.eq(~layer.normalise)]
                    with m.If(layer.normalise):
                        m.next = "SHARED"

            # The choices' logits, one row each, of which the last is marked.
            with m.State("READ"):
                m.d.comb += [memory.start.eq(1), memory.first.eq(topk.front.index)]
                m.d.sync += memory.rows.eq(Mux(last_entry, topk.front.index + 1, 0))
                choose("SIGMOIDS")

            with m.State("SIGMOIDS"):
                m.d.comb += [
                    weigh.valid.eq(keys.o_valid),
                    weigh.last.eq(keys.o_last),
                    weigh.term.eq(keys.o_term),
                ]
                with m.If(keys.o_valid & keys.o_last):
                    m.d.comb += taken.eq(1)
                    m.next = "SHARED"

            with m.State("ALL"):
                m.d.comb += [
                    scanning_again.eq(1),
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
                with m.Elif(weigh.ready):
                    m.next = "GATE"

            with m.State("GATE"):
                m.d.comb += [
                    weigh.start.eq(1),
                    weigh.initial.eq(FRACTION_ONE),
                    weigh.certain.eq(~gate[-1]),
                    weigh.scale_mantissa.eq(1 << 15),
                    weigh.scale_exponent.eq(-15),
                    weigh.count.eq(1),
                    weigh.terms_follow.eq(0),
                    exponential.valid.eq(1),
                    exponential.last.eq(1),
                ]
                with m.If(gate < 0):
                    m.d.comb += exponential.subtrahend.eq(gate)
                with m.Else():
                    m.d.comb += exponential.minuend.eq(gate)
                m.next = "WAIT"
        return m
