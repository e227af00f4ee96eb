"""The keys that experts are chosen by, and the sigmoids that their weights are made of."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import ACC_BITS, Arch
from rtl_gen import sigmoid
from rtl_gen.arith import Pipeline, align, bit_length
from rtl_gen.correction import ENTRY_BITS
from rtl_gen.exponential import FRACTION_ONE, exponential_layout
from rtl_gen.sigmoid import Sigmoid
from rtl_gen.types import expert_bits, layer_layout

LATENCY = sigmoid.LATENCY + 3
"""Cycles from a logit to its key."""


class Keys(wiring.Component):
    """A logit's key: the logit itself, or its sigmoid or the logit in units of 2^-28 plus the expert's correction.

    Latency: ``LATENCY``; throughput: one logit a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
        Stable while logits are under way.
    valid, last, row, logit, shift : In
        As of ``Sigmoid``.
    expert : Out, correction : In(32, signed)
        Read port of the correction table; ``correction`` follows ``expert`` by one cycle.
    o_valid, o_last, o_row : Out
        What came in ``LATENCY`` cycles ago.
    o_key : Out(48, signed)
        Its key.
    o_term : Out(exponential_layout())
        Its sigmoid, in the form of an exponential.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "valid": In(1),
                "last": In(1),
                "row": In(expert_bits(arch)),
                "logit": In(signed(ACC_BITS)),
                "shift": In(7),
                "expert": Out(expert_bits(arch)),
                "correction": In(signed(ENTRY_BITS)),
                "o_valid": Out(1),
                "o_last": Out(1),
                "o_row": Out(expert_bits(arch)),
                "o_key": Out(signed(ACC_BITS)),
                "o_term": Out(exponential_layout()),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layer = self.layer
        m.submodules.sigmoid = unit = Sigmoid(self.arch)
        for name in ("valid", "last", "row", "logit", "shift"):
            m.d.comb += getattr(unit, name).eq(getattr(self, name))
        m.d.comb += self.expert.eq(unit.o_row)

        p = Pipeline(m, valid=unit.o_valid)
        p.stage(
            last=unit.o_last,
            row=unit.o_row,
            key=Mux(layer.correction == 0, unit.o_logit, Mux(layer.correction == 1, unit.o_sigmoid, unit.o_fixed)),
            q=unit.o_sigmoid,
        )
        p.stage(
            correction=Mux(layer.correction == 0, 0, self.correction << layer.correction_shift)[:ACC_BITS].as_signed(),
            length=bit_length(p.q),
        )
        p.stage(
            correction=None,
            key=(p.key + p.correction)[:ACC_BITS].as_signed(),
            aligned=align(p.q, p.length),
        )
        term = self.o_term
        scale = (FRACTION_ONE // sigmoid.ONE).bit_length() - 1
        m.d.comb += [
            self.o_valid.eq(p.valid),
            self.o_last.eq(p.last),
            self.o_row.eq(p.row),
            self.o_key.eq(p.key),
            term.mantissa.eq(p.aligned[-len(term.mantissa) :]),
            term.halvings.eq(Const(sigmoid.FIXED_UNIT + 1) - p.length),
            term.fraction.eq(p.q << scale),
        ]
        return m
