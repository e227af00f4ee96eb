"""The router unit: stores the logits of a job, then chooses and weighs the experts of each token."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import ACC_BITS, EXP_BITS, Arch
from rtl_gen.expert_tables import ENTRY_BITS
from rtl_gen.groups import Groups
from rtl_gen.keys import Keys
from rtl_gen.logit_memory import LogitMemory
from rtl_gen.route_sender import RouteSender
from rtl_gen.score import FIXED_BITS, FIXED_UNIT, Function
from rtl_gen.softmax import UNIT, Softmax
from rtl_gen.topk import LATENCY as TOPK_LATENCY
from rtl_gen.topk import TopK
from rtl_gen.types import expert_bits, layer_layout, result_layout, route_layout, router_groups, slot_bits
from rtl_gen.weigh import Weigh

FRACTION_SHIFT = FIXED_BITS - FIXED_UNIT + UNIT
"""Of the logarithm unit's argument, a fraction of a sum of scores."""


class Router(wiring.Component):
    """Turns the router's accumulators into routes.

    Results are stored, one word a cycle, until the one marked ``last``; then no more are taken until the job is
    routed.

    The logits of a token are **scanned**: for the peak and the sum of a softmax over all experts, for the best groups,
    for the choices. The choices' logits are read again and their scores **weighed**; the routes are **sent**.

    Latency and throughput: a scan takes a cycle for each expert and about 50 more, a softmax over all experts two more
    scans and 40 cycles, the choices a cycle each. Routes take 8 cycles each and about 40 more; they leave while the
    next token of the job is scanned.

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
        The correction table can be read; its read port, as of ``ExpertTables``.
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
        layer = Signal.like(self.layer)  # far from where it was read
        m.d.sync += layer.eq(self.layer)

        m.submodules.memory = memory = LogitMemory(arch)
        m.submodules.keys = keys = Keys(arch)
        m.submodules.groups = groups = Groups(arch)
        m.submodules.topk = topk = TopK(arch.max_top_k, ACC_BITS, expert_bits(arch))
        m.submodules.softmax = softmax = Softmax(arch)
        m.submodules.weigh = weigh = Weigh(arch)
        m.submodules.sender = sender = RouteSender(arch)
        wiring.connect(m, wiring.flipped(self.results), memory.results)
        wiring.connect(m, weigh.weights, sender.weights)
        wiring.connect(m, sender.routes, wiring.flipped(self.routes))
        for block in (keys, groups, sender):
            m.d.comb += block.layer.eq(layer)

        slot = Signal(slot_bits(arch))
        last_slot = slot == memory.last_slot
        exponent_a = Signal(signed(EXP_BITS + 1))
        distance = FIXED_BITS - FIXED_UNIT - exponent_a
        m.d.sync += [
            memory.groups.eq(router_groups(arch, layer)),
            exponent_a.eq(memory.base_exponent + layer.router_exponent),
            keys.shift.eq(Mux(softmax.busy, FRACTION_SHIFT, Mux(distance < 0, 0, Mux(distance > 127, 127, distance)))),
        ]
        of_choices = Signal()  # what comes out of the memory is the choices' logits and a gate's
        peaking = Signal()
        whole = (layer.score == Function.EXPONENTIAL) & (~layer.normalise | (layer.correction != 0))
        first_key = Signal(signed(ACC_BITS))  # the peak of a softmax over the choices
        scored = keys.o_valid & ~keys.o_choice
        m.d.comb += [
            memory.slot.eq(slot),
            memory.tokens.eq(layer.tokens),
            keys.valid.eq(softmax.asking | (memory.o_valid & ~peaking)),
            keys.last.eq(memory.o_last),
            keys.choice.eq(of_choices),
            keys.row.eq(memory.o_row),
            keys.function.eq(Mux(of_choices & (memory.o_row == layer.experts), Function.SIGMOID, layer.score)),
            keys.logit.eq(memory.o_logit),
            keys.peak.eq(Mux(whole, softmax.peak, first_key)),
            keys.lse.eq(Mux(whole, softmax.lse, 0)),
            self.expert.eq(keys.expert),
            keys.correction.eq(self.correction),
            softmax.logit_valid.eq(memory.o_valid & peaking),
            softmax.logit.eq(memory.o_logit),
            groups.group.eq(topk.index),
            topk.valid.eq(groups.o_valid),
            topk.entry.key.eq(groups.o_key),
            topk.entry.index.eq(groups.o_index),
            weigh.valid.eq(keys.o_valid & keys.o_choice),
            weigh.term.eq(keys.o_term),
            self.busy.eq(memory.full | sender.busy),
            self.job_done.eq(sender.job_done),
        ]
        scanning = Signal()
        summed = Signal()
        m.d.sync += [  # in registers, for the blocks are far apart
            softmax.answered.eq(scored),
            softmax.term.eq(keys.o_term.score),
            summed.eq(scored & keys.o_last),
            groups.key.eq(keys.o_key),
            groups.valid.eq(scanning & scored),
            groups.last.eq(scanning & scored & keys.o_last),
        ]
        with m.If(softmax.asking):
            m.d.comb += [keys.function.eq(Function.LOGARITHM), keys.logit.eq(softmax.fraction)]

        entry = Signal(range(arch.max_top_k + 1))  # of the groups; of the choices, then of a gate
        last_choice = entry == layer.top_k - 1
        is_gate = entry == layer.top_k
        last_entry = Mux(layer.shared_gate, is_gate, last_choice)
        m.d.comb += [
            sender.tokens.payload.token.eq(memory.first_token + slot),
            sender.tokens.payload.last.eq(last_slot & memory.last_job),
            sender.tokens.payload.last_of_job.eq(last_slot),
            sender.choice.eq(topk.index),
            sender.last_choice.eq(last_choice),
            weigh.count.eq(layer.top_k),
            weigh.gate.eq(layer.shared_gate),
            weigh.normalise.eq(layer.normalise),
            weigh.epsilon.eq(layer.epsilon),
            weigh.scale_mantissa.eq(layer.scale[:16]),
            weigh.scale_exponent.eq(layer.scale[16:].as_signed()),
        ]

        def scan() -> None:
            m.d.comb += [memory.start.eq(1), topk.clear.eq(1), groups.clear.eq(1)]
            m.d.sync += groups.grouping.eq(layer.group_size != 0)
            m.next = "SCAN"

        met = Signal(TOPK_LATENCY - 1)  # the first place has met the last key
        read = Signal()  # the last row of a choice
        m.d.sync += [met.eq(Cat(groups.o_last, met)), read.eq(memory.o_valid & memory.o_last)]
        with m.FSM():
            with m.State("STORE"):
                m.d.sync += [slot.eq(0), memory.rows.eq(layer.experts)]
                with m.If(memory.full & self.loaded):
                    m.next = "START"

            with m.State("START"):
                scan()
                with m.If(whole):
                    m.d.comb += softmax.start.eq(1)
                    m.next = "PEAK"

            # ---- a softmax over all experts ----
            with m.State("PEAK"):
                m.d.comb += peaking.eq(1)
                with m.If(memory.o_valid & memory.o_last):
                    m.next = "START SUM"

            with m.State("START SUM"):
                m.d.comb += [memory.start.eq(1), softmax.sum.eq(1)]
                m.next = "SUM"

            with m.State("SUM"):
                m.d.comb += softmax.term_valid.eq(softmax.answered)
                with m.If(summed):
                    m.next = "FINISH"

            with m.State("FINISH"):
                m.d.comb += softmax.finish.eq(~(softmax.busy | softmax.done))
                with m.If(softmax.done):
                    scan()

            # ---- the best groups, then the choices ----
            with m.State("SCAN"):
                m.d.comb += scanning.eq(1)
                with m.If(met[-1]):
                    m.next = "RANKED"

            # The first place is right, and is read in the next cycle.

            with m.State("RANKED"):
                m.d.sync += first_key.eq(topk.largest)
                with m.If(groups.grouping):
                    m.next = "KEEP"
                with m.Elif(weigh.ready & sender.tokens.ready):
                    m.d.comb += [weigh.start.eq(1), sender.tokens.valid.eq(1)]
                    m.next = "CHOOSE"

            with m.State("KEEP"):
                m.d.comb += [groups.keep.eq(1), topk.place.eq(entry + 1)]
                m.d.sync += entry.eq(entry + 1)
                with m.If(entry + 1 == layer.kept_groups):
                    m.d.sync += entry.eq(0)
                    m.next = "START AGAIN"

            with m.State("START AGAIN"):
                m.d.comb += [memory.start.eq(1), topk.clear.eq(1)]
                m.d.sync += groups.grouping.eq(0)
                m.next = "SCAN"

            # ---- the logits of the choices and of a gate, one row each, of which the last is marked ----
            with m.State("CHOOSE"):
                row = Mux(is_gate, layer.experts, topk.index)
                m.d.comb += [
                    of_choices.eq(1),
                    memory.start.eq(1),
                    memory.first.eq(row),
                    topk.place.eq(entry + 1),
                    sender.choose.eq(~is_gate),
                ]
                m.d.sync += [entry.eq(entry + 1), memory.rows.eq(Mux(last_entry, row + 1, 0))]
                with m.If(last_entry):
                    m.d.sync += entry.eq(0)
                    m.next = "CHOSEN"

            # The slot stays until the last of them is past the unit's use of the shift.
            with m.State("CHOSEN"):
                m.d.comb += of_choices.eq(1)
                with m.If(read):
                    m.next = "ADVANCE"

            with m.State("ADVANCE"):
                m.d.sync += [slot.eq(slot + 1), memory.rows.eq(layer.experts)]
                m.next = "START"
                with m.If(last_slot):
                    m.d.comb += memory.release.eq(1)
                    m.next = "STORE"
        return m
