"""What the scores of a softmax over all experts need: the largest logit, and the logarithm of the sum."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import ACC_BITS, Arch
from moe_hw.tables import LN_2
from rtl_gen.groups import LOWEST
from rtl_gen.score import LSE_BITS, ONE, SCORE_BITS

UNIT = ONE.bit_length() - 1
"""Scores and sums are in units of ``2**-UNIT``."""


class Softmax(wiring.Component):
    """Finds the peak of a token's logits, then adds up its exponentials, then asks for the sum's logarithm.

    The sum is halved until it is below two. What the logarithm unit makes of it, and log(2) for every halving, is the
    result.

    Latency: from the last exponential to ``done`` at most 14 cycles and those of the logarithm; throughput: a logit or
    an exponential a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    start : In(1)
        Pulse before a token's first logit.
    logit_valid, logit : In
        A logit, in any order.
    peak : Out(48, signed)
        The largest logit since ``start``, two cycles after it.
    sum : In(1)
        Pulse before the first exponential; ``lse`` is 0 from the next cycle.
    term_valid, term : In
        exp(logit - peak) of a logit, in units of 2^-30; of one at least it is 1.
    finish : In(1)
        Pulse after the last exponential.
    asking : Out(1), fraction : Out(48, signed)
        ``asking`` is a pulse: the logarithm of one plus ``fraction``, in units of 2^-30, is needed.
    answered, term : In
        It comes, in units of 2^-30.
    busy : Out(1), done : Out(1)
        From ``finish`` on; a pulse in the cycle after it.
    lse : Out(32)
        From ``done`` on: logarithm of the sum, in units of 2^-28.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "start": In(1),
                "logit_valid": In(1),
                "logit": In(signed(ACC_BITS)),
                "peak": Out(signed(ACC_BITS)),
                "sum": In(1),
                "term_valid": In(1),
                "term": In(SCORE_BITS),
                "finish": In(1),
                "asking": Out(1),
                "fraction": Out(signed(ACC_BITS)),
                "answered": In(1),
                "busy": Out(1),
                "done": Out(1),
                "lse": Out(LSE_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        logit, logit_valid = Signal.like(self.logit), Signal()
        m.d.sync += [logit.eq(self.logit), logit_valid.eq(self.logit_valid)]
        with m.If(self.start):
            m.d.sync += self.peak.eq(LOWEST)
        with m.Elif(logit_valid & (logit > self.peak)):
            m.d.sync += self.peak.eq(logit)

        total = Signal(bits_for(self.arch.max_experts * ONE))
        logarithm = Signal(LSE_BITS + 2)
        m.d.comb += self.fraction.eq(total[:UNIT])
        with m.If(self.sum):
            m.d.sync += [total.eq(0), logarithm.eq(0), self.lse.eq(0)]
        with m.Elif(self.term_valid):
            m.d.sync += total.eq(total + self.term)

        m.d.sync += self.done.eq(0)
        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("ADD"))
            with m.State("ADD"), m.If(self.finish):
                m.next = "HALVE"
            with m.State("HALVE"):
                with m.If(total[UNIT + 1 :].any()):
                    m.d.sync += [total.eq(total >> 1), logarithm.eq(logarithm + LN_2)]
                with m.Else():
                    m.next = "ASK"
            with m.State("ASK"):
                m.d.comb += self.asking.eq(1)
                m.next = "WAIT"
            with m.State("WAIT"), m.If(self.answered):
                m.d.sync += [self.done.eq(1), self.lse.eq((logarithm + self.term + 2) >> 2)]
                m.next = "ADD"
        return m
