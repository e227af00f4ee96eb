"""The keys that experts are chosen by, and the scores that their weights are made of."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import ACC_BITS, Arch
from rtl_gen import score
from rtl_gen.arith import Pipeline, align, bit_length
from rtl_gen.expert_tables import ENTRY_BITS
from rtl_gen.score import SCORE_BITS, Score, logit_members
from rtl_gen.types import expert_bits, layer_layout

LATENCY = score.LATENCY + 4
"""Cycles from a logit to its key."""


def term_layout() -> data.StructLayout:
    """A score (q), and the same as ``mantissa * 2**(-11 - halvings)`` (y and n)."""
    return data.StructLayout({"mantissa": 18, "halvings": 6, "score": SCORE_BITS})


class Keys(wiring.Component):
    """A logit's score; and its key: the logit itself, or its score or the logit plus the expert's correction.

    Latency: ``LATENCY``; throughput: one logit a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
        Stable while logits are under way.
    valid, last, choice, row, function, logit, peak, lse, shift : In
        As of ``Score``.
    expert : Out, correction : In(32, signed)
        Read port of the correction table; ``correction`` follows ``expert`` by one cycle.
    o_valid, o_last, o_choice, o_row : Out
        What came in ``LATENCY`` cycles ago.
    o_key : Out(48, signed)
        Its key.
    o_term : Out(term_layout())
        Its score.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                **logit_members(arch),
                "expert": Out(expert_bits(arch)),
                "correction": In(signed(ENTRY_BITS)),
                "o_valid": Out(1),
                "o_last": Out(1),
                "o_choice": Out(1),
                "o_row": Out(expert_bits(arch)),
                "o_key": Out(signed(ACC_BITS)),
                "o_term": Out(term_layout()),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layer = self.layer
        m.submodules.score = unit = Score(self.arch)
        for name in logit_members(self.arch):
            m.d.comb += getattr(unit, name).eq(getattr(self, name))
        m.d.comb += self.expert.eq(unit.o_row)

        p = Pipeline(m, valid=unit.o_valid)
        p.stage(
            last=unit.o_last,
            choice=unit.o_choice,
            row=unit.o_row,
            key=Mux(layer.correction == 0, unit.o_logit, Mux(layer.correction == 1, unit.o_score, unit.o_fixed)),
            score=unit.o_score,
        )
        p.stage(correction=self.correction, length=bit_length(p.score))  # a block RAM's words are late
        p.stage(correction=Mux(layer.correction == 0, 0, p.correction << layer.correction_shift)[:ACC_BITS].as_signed())
        p.stage(
            correction=None,
            key=(p.key + p.correction)[:ACC_BITS].as_signed(),
            aligned=align(p.score, p.length),
        )
        term = self.o_term
        m.d.comb += [
            self.o_valid.eq(p.valid),
            self.o_last.eq(p.last),
            self.o_choice.eq(p.choice),
            self.o_row.eq(p.row),
            self.o_key.eq(p.key),
            term.mantissa.eq(p.aligned[-len(term.mantissa) :]),
            term.halvings.eq(Const(SCORE_BITS) - p.length),
            term.score.eq(p.score),
        ]
        return m
