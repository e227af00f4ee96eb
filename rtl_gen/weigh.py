"""Weights of the chosen experts: their scores, or each divided by their sum; and that of a shared expert's gate."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from moe_hw.arch import EXP_BITS, EXP_MIN, Arch
from rtl_gen.keys import term_layout
from rtl_gen.score import ONE, SCORE_BITS
from rtl_gen.types import weight_layout

RECIPROCAL_BITS = 17
"""Bits of (ms << 16) // M."""

PRODUCT_BITS = 18 + RECIPROCAL_BITS
"""Bits of a numerator times a reciprocal."""


GATE_EXPONENT = -8
"""``exponent_base`` of a division by one: the sum ``2**30``, scale one."""


def numerator_layout() -> data.StructLayout:
    """What is kept of a score for the weight of its expert."""
    return data.StructLayout({"mantissa": 18, "halvings": 6})


class Weigh(wiring.Component):
    """Adds up a token's terms, then divides each by the sum, while the next token's add up.

    The sum is normalised and its reciprocal computed bit by bit; a weight is then a product, normalised again.

    Latency: from the last term to the first weight 38 cycles if their sum is one, and one more for each halving of it;
    throughput: a term a cycle, a weight every 9 cycles.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    ready : Out(1), start : In(1)
        No terms are expected; a pulse before a token's first term begins.
    count : In
        With ``start``: its terms, from 1.
    gate : In(1)
        With ``start``: a gate's term follows them, whose weight is that term itself.
    normalise : In(1)
        With ``start``: divide by the sum of the terms; otherwise by one.
    epsilon : In(32)
        With ``start``: what that sum begins with, in units of 2^-30; at least 1.
    scale_mantissa : In(16), scale_exponent : In(12, signed)
        With ``start``: a factor of the weights but the gate's; the mantissa's top bit is set.
    valid, term : In
        A term in each cycle that is ``valid``.
    weights : Out(stream of weight_layout)
        One for each term, in order.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "ready": Out(1, init=1),
                "start": In(1),
                "count": In(range(arch.max_top_k + 1)),
                "gate": In(1),
                "normalise": In(1),
                "epsilon": In(32),
                "scale_mantissa": In(16),
                "scale_exponent": In(signed(EXP_BITS)),
                "valid": In(1),
                "term": In(term_layout()),
                "weights": Out(stream.Signature(weight_layout())),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        total_bits = bits_for(arch.max_top_k << SCORE_BITS)
        entry_bits = ceil_log2(arch.max_top_k + 1)
        m.submodules.numerators = numerators = Memory(shape=numerator_layout(), depth=2 << entry_bits, init=[])
        numerator_write, numerator_read = numerators.write_port(), numerators.read_port()
        bank = Signal()  # of the numerators whose sum is being added up; the others are being divided

        # ---- the sum ----
        total = Signal(total_bits)
        complete = Signal()
        kept, last_term = Signal(entry_bits), Signal(entry_bits)
        gated, normalise = Signal(), Signal()
        scale_mantissa, scale_exponent = Signal.like(self.scale_mantissa), Signal.like(self.scale_exponent)
        m.d.comb += [
            numerator_write.en.eq(self.valid),
            numerator_write.addr.eq(Cat(kept, bank)),
            numerator_write.data.mantissa.eq(self.term.mantissa),
            numerator_write.data.halvings.eq(self.term.halvings),
        ]
        with m.If(self.start):
            m.d.sync += [
                self.ready.eq(0),
                kept.eq(0),
                last_term.eq(self.count - 1 + self.gate),
                gated.eq(self.gate),
                normalise.eq(self.normalise),
                scale_mantissa.eq(self.scale_mantissa),
                scale_exponent.eq(self.scale_exponent),
                total.eq(Mux(self.normalise, self.epsilon, ONE)),
            ]
        with m.If(self.valid):
            m.d.sync += kept.eq(kept + 1)
            with m.If(normalise & ~(gated & (kept == last_term))):
                m.d.sync += total.eq(total + self.term.score)
            with m.If(kept == last_term):
                m.d.sync += complete.eq(1)

        # ---- the sum, then each product, in the upper bits of `value`: norm16 shifts it up and rounds it ----
        value = Signal(total_bits)
        exponent = Signal(signed(EXP_BITS))
        mantissa = Signal(16)
        rounded = Signal(17)
        m.d.comb += rounded.eq(value[-16:] + value[-17])
        entry, last_entry = Signal(entry_bits), Signal(entry_bits)
        of_gate, has_gate = Signal(), Signal()
        dividend = Signal()  # its next bit; the others behind it are zeros
        remainder = Signal(16)
        reciprocal = Signal(RECIPROCAL_BITS)
        step = Signal(range(RECIPROCAL_BITS))
        dividing = Signal()  # the value at hand is the sum
        factor_exponent = Signal(signed(EXP_BITS))
        exponent_base = Signal(signed(EXP_BITS))
        factor = Signal(RECIPROCAL_BITS)
        numerator = Signal.like(numerator_read.data)  # on its way to the multiplier
        product = Signal(PRODUCT_BITS)
        m.d.sync += numerator.eq(numerator_read.data)
        m.d.comb += [
            numerator_read.addr.eq(Cat(entry, ~bank)),
            of_gate.eq(has_gate & (entry == last_entry)),
            self.weights.payload.mantissa.eq(mantissa),
            self.weights.payload.exponent.eq(exponent),
        ]

        with m.FSM():
            with m.State("SUM"):
                m.d.sync += [
                    value.eq(total),
                    exponent.eq(total_bits - 16),
                    entry.eq(0),
                    last_entry.eq(last_term),
                    has_gate.eq(gated),
                    dividing.eq(1),
                    remainder.eq(scale_mantissa >> 1),
                    dividend.eq(scale_mantissa[0]),
                    factor_exponent.eq(scale_exponent + 15),
                ]
                with m.If(complete):
                    m.d.sync += [complete.eq(0), self.ready.eq(1), bank.eq(~bank)]
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
                        m.next = "WEIGHT"
                m.d.sync += step.eq(0)

            with m.State("DIVIDE"):
                longer = Cat(dividend, remainder)
                fits = longer >= mantissa
                m.d.sync += [
                    remainder.eq(longer - Mux(fits, mantissa, 0)),
                    dividend.eq(0),
                    reciprocal.eq(Cat(fits, reciprocal)),
                    step.eq(step + 1),
                    exponent_base.eq(factor_exponent + 7 - exponent),
                    dividing.eq(0),
                ]
                with m.If(step == RECIPROCAL_BITS - 1):
                    m.next = "READ"

            with m.State("READ"):
                m.d.sync += factor.eq(Mux(of_gate, 1 << 16, reciprocal))
                m.next = "TRAVEL"

            with m.State("TRAVEL"):
                m.next = "MULTIPLY"

            with m.State("MULTIPLY"):
                m.d.sync += product.eq(numerator.mantissa * factor)
                m.next = "ALIGN"

            with m.State("ALIGN"):
                m.d.sync += [
                    value.eq(product << total_bits - PRODUCT_BITS),
                    exponent.eq(Mux(of_gate, GATE_EXPONENT, exponent_base) - numerator.halvings),
                ]
                m.next = "NORMALISE"
                with m.If(numerator.mantissa == 0):
                    m.d.sync += [mantissa.eq(0), exponent.eq(EXP_MIN)]
                    m.next = "WEIGHT"

            with m.State("WEIGHT"):
                m.d.comb += self.weights.valid.eq(1)
                with m.If(self.weights.ready):
                    m.d.sync += entry.eq(entry + 1)
                    m.next = "READ"
                    with m.If(entry == last_entry):
                        m.next = "SUM"
        return m
