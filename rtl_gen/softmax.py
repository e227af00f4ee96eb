"""Weights of the chosen experts: exponentials, each divided by their sum."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import EXP_BITS, Arch
from rtl_gen.exponential import FRACTION_ONE, ONE, exponential_layout
from rtl_gen.types import weight_layout

RECIPROCAL_BITS = 17
"""Bits of 2^31 // M."""

RECIPROCAL_START = 1 << 31 - RECIPROCAL_BITS
"""The dividend above the quotient's bits: less than any M."""

PRODUCT_BITS = 34
"""Bits of ONE times the largest reciprocal."""


def numerator_layout() -> data.StructLayout:
    """What is kept of an exponential for the weight of its expert."""
    return data.StructLayout({"mantissa": 18, "halvings": 7})


class Softmax(wiring.Component):
    """Adds up exponentials, then divides the first ones, the numerators, by the sum.

    The sum is normalised and its reciprocal computed bit by bit; a weight is then a product, normalised again.

    Latency: up to 36 cycles from the last term to the first weight, of sums that have exp(0) among their terms;
    throughput: a term a cycle, a weight every 8 cycles.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    start : In(1)
        Pulse before the first term of a sum; when all weights of the sum before have been taken.
    count : In
        Numerators of the sum, from 1; held from ``start`` until the last weight.
    terms_follow : In(1)
        The terms of the sum come after the numerators; otherwise the numerators are the terms. Held likewise.
    sigmoid : In(1), positive : In(1)
        The sum begins with exp(0), and ``positive`` makes that the numerator too. Held likewise.
    valid, last, term : In
        An exponential in each cycle that is ``valid``; ``last`` marks the last of the sum.
    weights : Out(stream of weight_layout)
        One for each numerator, in order.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "start": In(1),
                "count": In(range(arch.max_top_k + 1)),
                "terms_follow": In(1),
                "sigmoid": In(1),
                "positive": In(1),
                "valid": In(1),
                "last": In(1),
                "term": In(exponential_layout()),
                "weights": Out(stream.Signature(weight_layout())),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch

        # The sum of the fractions, then each product in the upper bits: norm16 shifts it up and rounds it.
        value_bits = max(PRODUCT_BITS, bits_for(arch.max_experts * FRACTION_ONE))
        value = Signal(value_bits)
        exponent = Signal(signed(EXP_BITS))
        mantissa = Signal(16)
        rounded = Signal(17)
        m.d.comb += rounded.eq(value[-16:] + value[-17])

        m.submodules.numerators = numerators = Memory(shape=numerator_layout(), depth=arch.max_top_k, init=[])
        numerator_write, numerator_read = numerators.write_port(), numerators.read_port()
        kept = Signal(range(arch.max_top_k + 1))
        all_kept = kept == self.count
        entry = Signal(range(arch.max_top_k))
        certain = self.sigmoid & self.positive
        m.d.comb += [
            numerator_write.en.eq(self.valid & ~all_kept),
            numerator_write.addr.eq(kept),
            numerator_write.data.mantissa.eq(Mux(certain, ONE, self.term.mantissa)),
            numerator_write.data.halvings.eq(Mux(certain, 0, self.term.halvings)),
            numerator_read.addr.eq(entry),
        ]
        with m.If(self.valid):
            with m.If(~all_kept):
                m.d.sync += kept.eq(kept + 1)
            with m.If(~self.terms_follow | all_kept):
                m.d.sync += value.eq(value + self.term.fraction)

        remainder = Signal(16)
        reciprocal = Signal(RECIPROCAL_BITS)
        step = Signal(range(RECIPROCAL_BITS))
        dividing = Signal()  # the value at hand is the sum
        scale = Signal(signed(EXP_BITS))
        product = Signal(PRODUCT_BITS)
        m.d.comb += [self.weights.payload.mantissa.eq(mantissa), self.weights.payload.exponent.eq(exponent)]

        with m.FSM():
            with m.State("SUM"):
                m.d.sync += [entry.eq(0), dividing.eq(1), exponent.eq(value_bits - 16)]
                with m.If(self.start):
                    m.d.sync += [kept.eq(0), value.eq(Mux(self.sigmoid, FRACTION_ONE, 0))]
                with m.If(self.valid & self.last):
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

            with m.State("WEIGHT"):
                m.d.comb += self.weights.valid.eq(1)
                with m.If(self.weights.ready):
                    m.d.sync += entry.eq(entry + 1)
                    m.next = "READ"
                    with m.If(entry == self.count - 1):
                        m.next = "SUM"
        return m
