"""The router unit: stores the logits of a batch, then chooses and weighs the experts of each token."""

from __future__ import annotations

from itertools import pairwise

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from moe_hw.arch import ACC_BITS, EXP_BITS, Arch
from rtl_gen.arith import Pipeline
from rtl_gen.topk import TopK
from rtl_gen.types import expert_bits, layer_layout, result_layout, route_layout, slot_bits

ARGUMENT_BITS = 26
"""Bits of the argument D of an exponential."""

ARGUMENT_UNIT = 20
"""D is in units of 2^-20."""

LOG2_E = 189097
"""round(log2(e) * 2^17)"""

ONE = 1 << 17
"""The mantissa of exp(0)."""

FRACTION_ONE = 1 << 31
"""The fraction of exp(0)."""


RECIPROCAL_BITS = 17
"""Bits of 2^31 // M."""

RECIPROCAL_START = 1 << 31 - RECIPROCAL_BITS
"""The dividend above the quotient's bits: less than any M."""

PRODUCT_BITS = 34
"""Bits of ONE times the largest reciprocal."""


def table_layout() -> data.StructLayout:
    """An entry of the table of 2^-x: T[i] and its drop to the next, G[i]."""
    return data.StructLayout({"value": 18, "drop": 9})


def exponential_layout() -> data.StructLayout:
    """An exponential ``mantissa * 2**(-17 - halvings)`` (y and n), and the same as ``fraction * 2**-31`` (q)."""
    return data.StructLayout({"mantissa": 18, "halvings": 7, "fraction": 32})


def numerator_layout() -> data.StructLayout:
    """What is kept of an exponential for the weight of its expert."""
    return data.StructLayout({"mantissa": 18, "halvings": 7})


class Exponential(wiring.Component):
    """exp of a difference of two accumulators, as in section 4 of ``docs/numerics.md``.

    One difference a cycle; latency 13 cycles.

    Members
    -------
    valid, last : In(1)
        There is a difference in this cycle; a mark that travels with it.
    minuend, subtrahend : In(48, signed)
        The larger and the smaller accumulator.
    shift : In(7)
        ``6 - A``, limited to 0 to 127, for accumulators in units of ``2**A``; constant while differences are under way.
    o_valid, o_last, o : Out
        exp(subtrahend - minuend) of the one ``latency`` cycles ago.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "valid": In(1),
                "last": In(1),
                "minuend": In(signed(ACC_BITS)),
                "subtrahend": In(signed(ACC_BITS)),
                "shift": In(7),
                "o_valid": Out(1),
                "o_last": Out(1),
                "o": Out(exponential_layout()),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        values = [round(2 ** (17 - i / 256)) for i in range(257)]
        entries = [{"value": here, "drop": here - after} for here, after in pairwise(values)]
        m.submodules.table = table = Memory(shape=table_layout(), depth=256, init=entries)
        lookup = table.read_port()

        p = Pipeline(m, valid=self.valid)
        p.stage(last=self.last, minuend=self.minuend, subtrahend=self.subtrahend)
        p.stage(d=(p.minuend - p.subtrahend)[:ACC_BITS], minuend=None, subtrahend=None)
        # D = d << (A + 20), as a shift to the right from the far left, in two steps.
        p.stage(d=Cat(Const(0, ARGUMENT_BITS), p.d) >> Cat(Const(0, 4), self.shift[4:]))
        p.stage(d=p.d >> self.shift[:4])
        p.stage(d=Mux(p.d[ARGUMENT_BITS:].any(), (1 << ARGUMENT_BITS) - 1, p.d[:ARGUMENT_BITS]))
        half = ARGUMENT_BITS // 2
        p.stage(d=None, low=p.d[:half] * LOG2_E, high=p.d[half:] * LOG2_E)
        p.stage(low=None, high=None, product=p.low + (p.high << half))
        p.stage(product=None, rest=p.product[17:29], index=p.product[29:37], halvings=p.product[37:])
        m.d.comb += lookup.addr.eq(p.index)
        p.stage(index=None)
        p.stage(value=lookup.data.value, drop=lookup.data.drop)
        p.stage(rest=None, drop=None, fall=p.drop * p.rest)
        p.stage(value=None, fall=None, mantissa=(p.value - ((p.fall + (1 << 11)) >> 12))[:18])
        p.stage(fraction=((p.mantissa << 14) >> p.halvings)[:32])
        m.d.comb += [
            self.o_valid.eq(p.valid),
            self.o_last.eq(p.last),
            self.o.mantissa.eq(p.mantissa),
            self.o.halvings.eq(p.halvings),
            self.o.fraction.eq(p.fraction),
        ]
        return m


class LogitMemory(wiring.Component):
    """Stores the result words of a batch, then reads a token's logits one after another.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    results : In(stream of result_layout)
        A word a cycle, in any order, until the one marked ``last``; no more until ``release``.
    groups : In
        Result words of a token.
    full : Out(1)
        The batch is stored and can be scanned.
    release : In(1)
        Forget the batch.
    token : In
        The token that is scanned; held from its ``start`` until ``o_last``.
    base_exponent : Out
        That of ``token``, one cycle later.
    start, rows : In
        Scan rows 0 to ``rows`` - 1; ``rows`` is held until ``o_last``.
    o_valid, o_last, o_row, o_logit : Out
        A row a cycle, the first 5 cycles after ``start``.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        rows_max = arch.max_experts + 1
        super().__init__(
            {
                "results": In(stream.Signature(result_layout(arch))),
                "groups": In(range(-(-rows_max // arch.columns) + 1)),
                "full": Out(1),
                "release": In(1),
                "token": In(slot_bits(arch)),
                "base_exponent": Out(signed(EXP_BITS)),
                "start": In(1),
                "rows": In(range(rows_max + 1)),
                "o_valid": Out(1),
                "o_last": Out(1),
                "o_row": Out(range(rows_max)),
                "o_logit": Out(signed(ACC_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        word = data.ArrayLayout(signed(ACC_BITS), arch.columns)
        m.submodules.logits = logits = Memory(shape=word, depth=arch.logit_words, init=[])
        m.submodules.bases = bases = Memory(shape=signed(EXP_BITS), depth=arch.max_tokens, init=[])
        logit_write, logit_read = logits.write_port(), logits.read_port()
        base_write, base_read = bases.write_port(), bases.read_port()

        accepting = Signal(init=1)
        accept = self.results.valid & accepting
        result = self.results.payload
        m.d.comb += self.results.ready.eq(accepting)
        p = Pipeline(m, valid=accept)
        p.stage(
            acc=Cat(*result.acc),
            slot=result.slot,
            group=result.group,
            first=result.slot * self.groups,
            base=result.base_exponent,
            last=result.last,
        )
        p.stage(first=None, group=None, address=p.first + p.group)
        m.d.comb += [
            logit_write.en.eq(p.valid),
            logit_write.addr.eq(p.address),
            Cat(*logit_write.data).eq(p.acc),
            base_write.en.eq(p.valid),
            base_write.addr.eq(p.slot),
            base_write.data.eq(p.base),
        ]
        with m.If(accept & result.last):
            m.d.sync += accepting.eq(0)
        with m.If(p.valid & p.last):
            m.d.sync += self.full.eq(1)
        with m.If(self.release):
            m.d.sync += [accepting.eq(1), self.full.eq(0)]

        m.d.comb += [base_read.addr.eq(self.token), self.base_exponent.eq(base_read.data)]
        first = Signal(range(arch.logit_words))
        m.d.sync += first.eq(self.token * self.groups)
        column_bits = exact_log2(arch.columns)
        scanning = Signal()
        row = Signal.like(self.o_row)
        last = row == self.rows - 1
        with m.If(self.start):
            m.d.sync += [scanning.eq(1), row.eq(0)]
        with m.Elif(scanning):
            m.d.sync += [scanning.eq(~last), row.eq(row + 1)]
        p = Pipeline(m, valid=scanning)
        p.stage(row=row, last=last, address=first + (row >> column_bits))
        m.d.comb += logit_read.addr.eq(p.address)
        p.stage(address=None)
        p.stage(word=Cat(*logit_read.data))
        p.stage(word=None, logit=p.word.word_select(p.row[:column_bits], ACC_BITS))
        m.d.comb += [
            self.o_valid.eq(p.valid),
            self.o_last.eq(p.last),
            self.o_row.eq(p.row),
            self.o_logit.eq(p.logit),
        ]
        return m


class Router(wiring.Component):
    """Turns the router's accumulators into routes.

    Results are stored, one word a cycle, until the one marked ``last``; then no more are taken until the batch is
    routed. A token takes a cycle for each logit (two, if its softmax is over all experts), about 8 for each choice
    and about 60 more; a gated shared expert takes another 50.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    results : In(stream of result_layout)
        Accumulators of kind ROUTER; ``slot`` is the token.
    layer : In(layer_layout)
        Stable from two cycles before the first result to the last route.
    routes : Out(stream of route_layout)
        For each token its choices in descending order, then the shared expert's entry if there is one.
    busy : Out(1)
        A batch is stored and not yet routed.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "results": In(stream.Signature(result_layout(arch))),
                "layer": In(layer_layout()),
                "routes": Out(stream.Signature(route_layout(arch))),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer

        m.submodules.memory = memory = LogitMemory(arch)
        m.submodules.topk = topk = TopK(arch.max_top_k, ACC_BITS, expert_bits(arch))
        m.submodules.exponential = exponential = Exponential()
        wiring.connect(m, wiring.flipped(self.results), memory.results)
        token = Signal(slot_bits(arch))
        rows = Signal.like(memory.rows)
        exponent_a = Signal(signed(EXP_BITS + 1))
        shift = ARGUMENT_BITS - ARGUMENT_UNIT - exponent_a
        m.d.sync += [
            rows.eq(layer.experts + layer.shared_gate),
            memory.groups.eq((layer.experts + layer.shared_gate + arch.columns - 1) >> exact_log2(arch.columns)),
            exponent_a.eq(memory.base_exponent + layer.router_exponent),
            exponential.shift.eq(Mux(shift < 0, 0, Mux(shift > 127, 127, shift))),
        ]
        m.d.comb += [
            memory.token.eq(token),
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
        ]

        # The sum of the fractions, then each product in the upper bits: norm16 shifts it up and rounds it.
        value_bits = max(PRODUCT_BITS, bits_for(arch.max_experts * FRACTION_ONE))
        value = Signal(value_bits)
        exponent = Signal(signed(EXP_BITS))
        mantissa = Signal(16)
        rounded = Signal(17)
        m.d.comb += rounded.eq(value[-16:] + value[-17])

        # The first exponentials of a pass are the numerators of the entries.
        m.submodules.numerators = numerators = Memory(shape=numerator_layout(), depth=arch.max_top_k, init=[])
        numerator_write, numerator_read = numerators.write_port(), numerators.read_port()
        kept = Signal(range(arch.max_top_k + 1))
        certain = shared & ~gate[-1]  # sigmoid of a positive number: the numerator is exp(0)
        m.d.comb += [
            numerator_write.en.eq(exponential.o_valid & (kept != entries)),
            numerator_write.addr.eq(kept),
            numerator_write.data.mantissa.eq(Mux(certain, ONE, exponential.o.mantissa)),
            numerator_write.data.halvings.eq(Mux(certain, 0, exponential.o.halvings)),
            numerator_read.addr.eq(entry),
        ]
        with m.If(exponential.o_valid):
            with m.If(kept != entries):
                m.d.sync += kept.eq(kept + 1)
            with m.If(shared | layer.normalise | (kept == entries)):
                m.d.sync += value.eq(value + exponential.o.fraction)

        remainder = Signal(16)
        reciprocal = Signal(RECIPROCAL_BITS)
        step = Signal(range(RECIPROCAL_BITS))
        dividing = Signal()  # the value at hand is the total
        scale = Signal(signed(EXP_BITS))
        product = Signal(PRODUCT_BITS)

        route = self.routes.payload
        m.d.comb += [
            route.token.eq(token),
            route.expert.eq(Mux(shared, layer.experts, chosen_read.data)),
            route.weight.mantissa.eq(mantissa),
            route.weight.exponent.eq(exponent),
            route.last.eq(last_entry & (shared | (layer.shared_blocks == 0)) & (token == layer.tokens - 1)),
        ]

        with m.FSM():
            with m.State("STORE"):
                m.d.sync += token.eq(0)
                with m.If(memory.full):
                    m.next = "START"

            with m.State("START"):
                m.d.comb += [memory.start.eq(1), topk.clear.eq(1)]
                m.d.sync += [
                    memory.rows.eq(rows),
                    shared.eq(0),
                    entry.eq(0),
                    entries.eq(layer.top_k),
                    kept.eq(0),
                    value.eq(0),
                ]
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
                    m.next = "SUM"

            with m.State("GATE"):
                m.d.comb += [exponential.valid.eq(1), exponential.last.eq(1)]
                with m.If(gate < 0):
                    m.d.comb += exponential.subtrahend.eq(gate)
                with m.Else():
                    m.d.comb += exponential.minuend.eq(gate)
                m.next = "SUM"

            with m.State("SUM"):
                # Over all experts: their logits are scanned again. Otherwise the memory is silent.
                m.d.comb += [
                    exponential.valid.eq(memory.o_valid),
                    exponential.last.eq(memory.o_last),
                    exponential.minuend.eq(largest),
                    exponential.subtrahend.eq(memory.o_logit),
                ]
                m.d.sync += [entry.eq(0), dividing.eq(1), exponent.eq(value_bits - 16)]
                with m.If(exponential.o_valid & exponential.o_last):
                    m.next = "NORMALISE"

            with m.State("NORMALISE"):
                with m.If(~value[-1]):
                    m.d.sync += [value.eq(value << 1), exponent.eq(exponent - 1)]
                with m.Else():
                    # A carry out leaves zeros behind it: the mantissa is 2^15 then.
                    m.d.sync += [mantissa.eq(Cat(rounded[:15], 1)), exponent.eq(exponent + rounded[-1])]
                    with m.If(dividing):
                        m.next = "DIVIDE"
                    with m.Else():
                        m.next = "EMIT"
                m.d.sync += [remainder.eq(RECIPROCAL_START), step.eq(0)]

            with m.State("DIVIDE"):
                fits = (remainder << 1) >= mantissa
                m.d.sync += [
                    remainder.eq((remainder << 1) - Mux(fits, mantissa, 0)),
                    reciprocal.eq(Cat(fits, reciprocal)),
                    step.eq(step + 1),
                    scale.eq(1 - exponent),
                    dividing.eq(0),
                ]
                with m.If(step == RECIPROCAL_BITS - 1):
                    m.next = "READ"

            with m.State("READ"):
                m.next = "MULTIPLY"

            with m.State("MULTIPLY"):
                m.d.sync += product.eq(numerator_read.data.mantissa * reciprocal)
                m.next = "ALIGN"

            with m.State("ALIGN"):
                m.d.sync += [
                    value.eq(product << value_bits - PRODUCT_BITS),
                    exponent.eq(scale - numerator_read.data.halvings),
                ]
                m.next = "NORMALISE"

            with m.State("EMIT"):
                m.d.comb += self.routes.valid.eq(1)
                with m.If(self.routes.ready):
                    with m.If(~last_entry):
                        m.d.sync += entry.eq(entry + 1)
                        m.next = "READ"
                    with m.Elif(~shared & (layer.shared_blocks != 0)):
                        m.d.sync += [
                            shared.eq(1),
                            entry.eq(0),
                            entries.eq(1),
                            kept.eq(0),
                            value.eq(FRACTION_ONE),
                            mantissa.eq(1 << 15),
                            exponent.eq(-15),
                        ]
                        with m.If(layer.shared_gate):
                            m.next = "GATE"
                    with m.Elif(token != layer.tokens - 1):
                        m.d.sync += token.eq(token + 1)
                        m.next = "START"
                    with m.Else():
                        m.d.comb += memory.release.eq(1)
                        m.next = "STORE"
        return m
