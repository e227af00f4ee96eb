"""The exponential function of differences of logits: a table of linear pieces and a shift."""

from __future__ import annotations

from amaranth.hdl import Module, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moe_hw.arch import ACC_BITS
from moe_hw.tables import EXP_STEPS, EXP_VALUES, LOG2_E
from rtl_gen.arith import Pipeline, scale_stages

ARGUMENT_BITS = 26
"""Bits of the argument D of an exponential."""

ARGUMENT_UNIT = 20
"""D is in units of 2^-20."""

ONE = 1 << 17
"""The mantissa of exp(0)."""

FRACTION_ONE = 1 << 31
"""The fraction of exp(0)."""

LATENCY = 13
"""Cycles from a difference to its exponential."""


def piece_layout() -> data.StructLayout:
    """A piece of 2^-x: its first value, T[i], and how much it falls, G[i]."""
    return data.StructLayout({"value": 18, "drop": 9})


def exponential_layout() -> data.StructLayout:
    """An exponential ``mantissa * 2**(-17 - halvings)`` (y and n), and the same as ``fraction * 2**-31`` (q)."""
    return data.StructLayout({"mantissa": 18, "halvings": 7, "fraction": 32})


class Exponential(wiring.Component):
    """exp of a difference of two accumulators, as in section 4 of ``docs/numerics.md``.

    Latency: ``LATENCY``; throughput: one difference a cycle.

    Members
    -------
    valid, last : In(1)
        There is a difference in this cycle; a mark that travels with it.
    minuend, subtrahend : In(48, signed)
        The larger and the smaller accumulator.
    shift : In(7)
        ``6 - A``, limited to 0 to 127, for accumulators in units of ``2**A``; constant while differences are under way.
    o_valid, o_last, o : Out
        exp(subtrahend - minuend) of the difference ``LATENCY`` cycles ago, and its mark.
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
        pieces = [{"value": int(t), "drop": int(g)} for t, g in zip(EXP_VALUES, EXP_STEPS, strict=False)]
        m.submodules.table = table = Memory(shape=piece_layout(), depth=len(pieces), init=pieces)
        lookup = table.read_port()

        p = Pipeline(m, valid=self.valid)
        p.stage(last=self.last, minuend=self.minuend, subtrahend=self.subtrahend)
        p.stage(d=(p.minuend - p.subtrahend)[:ACC_BITS], minuend=None, subtrahend=None)
        scale_stages(p, "d", ARGUMENT_BITS, self.shift)  # D = d << (A + 20)
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
