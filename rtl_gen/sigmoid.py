"""The sigmoid of a logit: a table of quadratic pieces."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moe_hw.arch import ACC_BITS, Arch
from moe_hw.tables import SIGMOID_BENDS, SIGMOID_PIECES, SIGMOID_SLOPES, SIGMOID_VALUES
from rtl_gen.arith import Pipeline, magnitude, scale_stages
from rtl_gen.types import expert_bits

FIXED_BITS = 40
"""Bits of a logit's magnitude in units of 2^-28."""

FIXED_UNIT = 28
"""Sigmoids, and logits that they are compared with, are in units of 2^-28."""

ONE = 1 << FIXED_UNIT
"""The largest sigmoid."""

REST_BITS = 22
"""Bits of a place within a piece."""

LATENCY = 13
"""Cycles from a logit to its sigmoid."""


def piece_layout() -> data.StructLayout:
    """A piece of the sigmoid: B0, B1 and B2."""
    return data.StructLayout({"value": 31, "slope": 18, "bend": 11})


class Sigmoid(wiring.Component):
    """Sigmoid of accumulators, as in section 4 of ``docs/numerics.md``.

    Latency: ``LATENCY``; throughput: one logit a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    valid, last, row : In
        There is a logit in this cycle; a mark and a number that travel with it.
    logit : In(48, signed)
        The accumulator.
    shift : In(7)
        ``12 - A``, limited to 0 to 127, for accumulators in units of ``2**A``; constant while logits are under way.
    o_valid, o_last, o_row, o_logit : Out
        What came in ``LATENCY`` cycles ago.
    o_fixed : Out(41, signed), o_sigmoid : Out(29)
        Its logit (z) and the logit's sigmoid, in units of 2^-28.
    """

    def __init__(self, arch: Arch):
        super().__init__(
            {
                "valid": In(1),
                "last": In(1),
                "row": In(expert_bits(arch)),
                "logit": In(signed(ACC_BITS)),
                "shift": In(7),
                "o_valid": Out(1),
                "o_last": Out(1),
                "o_row": Out(expert_bits(arch)),
                "o_logit": Out(signed(ACC_BITS)),
                "o_fixed": Out(signed(FIXED_BITS + 1)),
                "o_sigmoid": Out(FIXED_UNIT + 1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        columns = zip(SIGMOID_VALUES, SIGMOID_SLOPES, SIGMOID_BENDS, strict=True)
        pieces = [{"value": int(value), "slope": int(slope), "bend": int(bend)} for value, slope, bend in columns]
        m.submodules.table = table = Memory(shape=piece_layout(), depth=SIGMOID_PIECES, init=pieces)
        lookup = table.read_port()

        p = Pipeline(m, valid=self.valid)
        p.stage(last=self.last, row=self.row, logit=self.logit)
        p.stage(v=magnitude(p.logit))
        scale_stages(p, "v", FIXED_BITS, self.shift)  # v << (A + 28)
        far = p.v[FIXED_UNIT + 3 :].any()
        near = Mux(far, p.v >> 1, p.v)
        p.stage(
            one=p.v >= 24 * ONE,
            index=near[REST_BITS : REST_BITS + 10] + Mux(far, SIGMOID_PIECES // 4, 0),
            rest=near[:REST_BITS],
        )
        m.d.comb += lookup.addr.eq(p.index[:10])
        p.stage(index=None)
        p.stage(value=lookup.data.value, slope=lookup.data.slope, bend=lookup.data.bend)
        half = REST_BITS // 2
        p.stage(bend=None, fall=p.bend * p.rest[half:])
        p.stage(fall=None, slope=(p.slope - ((p.fall + (1 << 11)) >> 12))[:18])
        p.stage(slope=None, rest=None, low=p.slope * p.rest[:half], high=p.slope * p.rest[half:])
        p.stage(low=None, high=None, value=p.value + ((p.low + (p.high << half)) >> 18))
        p.stage(value=None, s=Mux(p.one, ONE, (p.value + 2) >> 2))
        m.d.comb += [
            self.o_valid.eq(p.valid),
            self.o_last.eq(p.last),
            self.o_row.eq(p.row),
            self.o_logit.eq(p.logit),
            self.o_fixed.eq(Mux(p.logit < 0, -p.v, p.v)),
            self.o_sigmoid.eq(Mux(p.logit < 0, ONE - p.s, p.s)),
        ]
        return m
