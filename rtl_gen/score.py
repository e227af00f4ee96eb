"""The scores of logits, and the logarithm of a softmax's sum: one table of quadratic pieces for all functions."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, signed
from amaranth.lib import data, enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moe_hw import tables
from moe_hw.arch import ACC_BITS, Arch
from moe_hw.tables import CURVE_BENDS, CURVE_FINE, CURVE_PIECES, CURVE_SLOPES, CURVE_VALUES
from rtl_gen.arith import Pipeline, bit_length, magnitude, scale_stages
from rtl_gen.types import expert_bits

FIXED_BITS = 40
"""Bits of a logit's magnitude in units of 2^-28."""

FIXED_UNIT = 28
"""Arguments of functions are in units of 2^-28."""

ONE = 1 << 30
"""A score of one: scores are in units of 2^-30."""

SCORE_BITS = 37
"""Bits of a score."""

LSE_BITS = 32
"""Bits of a logarithm of a sum."""

REST_BITS = 21
"""Bits of a place within a piece."""

LATENCY = 21
"""Cycles from a logit to its score."""


class Function(enum.Enum, shape=2):
    """What becomes of an accumulator; the first three have the descriptor's numbers of scores."""

    EXPONENTIAL = 0
    SIGMOID = 1
    ROOT = 2
    LOGARITHM = 3


BELOW = (tables.EXPONENTIAL, tables.SIGMOID, tables.ROOT_BELOW, tables.LOGARITHM)
ABOVE = (tables.EXPONENTIAL, tables.SIGMOID, tables.ROOT_ABOVE, tables.LOGARITHM)
"""Curves of the functions, for arguments below 0 and others."""


def piece_layout() -> data.StructLayout:
    """A piece of a curve: B0, B1, B2 and F."""
    return data.StructLayout({"value": 31, "slope": 18, "bend": signed(13), "fine": 2})


def logit_members(arch: Arch) -> dict[str, wiring.Member]:
    """A logit and what is to be made of it; see :class:`Score`."""
    return {
        "valid": In(1),
        "last": In(1),
        "choice": In(1),
        "row": In(expert_bits(arch)),
        "function": In(Function),
        "logit": In(signed(ACC_BITS)),
        "peak": In(signed(ACC_BITS)),
        "lse": In(LSE_BITS),
        "shift": In(7),
    }


class Score(wiring.Component):
    """Functions of accumulators, as in section 4 of ``docs/numerics.md``.

    Latency: ``LATENCY``; throughput: one logit a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    valid, last, choice, row : In
        There is a logit in this cycle; two marks and a number that travel with it.
    function : In(Function)
        Of this logit.
    logit : In(48, signed)
        The accumulator.
    peak : In(48, signed)
        Of an exponential: what the logit is less than, or is; ``exp(logit - peak - lse)`` is computed. A cycle after
        the logit.
    lse : In(32)
        Of an exponential, in units of 2^-28; seven cycles after the logit.
    shift : In(7)
        ``12 - A``, limited to 0 to 127, for accumulators in units of ``2**A``; four and five cycles after the logit.
    o_valid, o_last, o_choice, o_row, o_logit : Out
        What came in ``LATENCY`` cycles ago.
    o_fixed : Out(43, signed)
        The logit in units of 2^-30 (z); of no exponential.
    o_score : Out(37)
        The function's value in units of 2^-30.
    """

    def __init__(self, arch: Arch):
        super().__init__(
            {
                **logit_members(arch),
                "o_valid": Out(1),
                "o_last": Out(1),
                "o_choice": Out(1),
                "o_row": Out(expert_bits(arch)),
                "o_logit": Out(signed(ACC_BITS)),
                "o_fixed": Out(signed(FIXED_BITS + 3)),
                "o_score": Out(SCORE_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        columns = zip(CURVE_VALUES, CURVE_SLOPES, CURVE_BENDS, CURVE_FINE, strict=True)
        names = piece_layout().members
        pieces = [dict(zip(names, map(int, piece), strict=True)) for piece in columns]
        m.submodules.table = table = Memory(shape=piece_layout(), depth=CURVE_PIECES, init=pieces)
        lookup = table.read_port()

        p = Pipeline(m, valid=self.valid)
        p.stage(last=self.last, choice=self.choice, row=self.row, logit=self.logit, function=self.function)
        exponential = p.function == Function.EXPONENTIAL
        p.stage(exponential=exponential, peak=Mux(exponential, self.peak, 0))
        p.stage(peak=None, v=p.logit - p.peak)
        p.stage(v=magnitude(p.v)[:ACC_BITS])
        scale_stages(p, "v", FIXED_BITS, self.shift)  # v << (A + 28)
        p.stage(v=p.v + Mux(p.exponential, self.lse, 0))
        near = FIXED_UNIT + 1  # bits of what is below 2
        negative = p.logit < 0
        p.stage(
            octave=bit_length(p.v[near:FIXED_BITS]),
            base=Mux(
                negative,
                Array(curve.base for curve in BELOW)[p.function],
                Array(curve.base for curve in ABOVE)[p.function],
            ),
            beyond=p.v[FIXED_UNIT + 5 :].any() & ((p.function != Function.ROOT) | negative),
        )
        p.stage(near=(p.v >> p.octave)[:near], base=(p.base + p.octave)[:5])
        index = p.near[REST_BITS:]
        m.d.comb += lookup.addr.eq(Cat(index[:7], (p.base + index[7])[:5]))
        p.stage(near=None, base=None, rest=p.near[:REST_BITS])
        p.stage(
            value=lookup.data.value,
            slope=lookup.data.slope,
            bend=lookup.data.bend.as_signed(),
            fine=lookup.data.fine,
        )
        half = REST_BITS - 11
        p.travel()
        p.stage(bend=None, fall=p.bend * p.rest[half:])
        p.stage(fall=None, slope=(p.slope - ((p.fall + (1 << 11)) >> 12))[:18])
        p.travel()
        p.stage(slope=None, rest=None, low=p.slope * p.rest[:half], high=p.slope * p.rest[half:])
        p.stage(low=None, high=None, rise=(p.low + (p.high << half)) >> 16)
        p.stage(rise=None, fine=None, value=(p.value + (p.rise >> (p.fine << 1)))[:31])
        p.stage(
            beyond=None,
            value=Mux(p.beyond, ONE, p.value),
            octave=Mux(p.function == Function.ROOT, (p.octave + 1) >> 1, 0),
            falls=p.exponential | ((p.function != Function.LOGARITHM) & (p.logit < 0)),
        )
        p.stage(octave=None, falls=None, value=Mux(p.falls, ONE - p.value, p.value << p.octave)[:SCORE_BITS])
        m.d.comb += [
            self.o_valid.eq(p.valid),
            self.o_last.eq(p.last),
            self.o_choice.eq(p.choice),
            self.o_row.eq(p.row),
            self.o_logit.eq(p.logit),
            self.o_fixed.eq(Mux(p.logit < 0, -p.v, p.v) << 2),
            self.o_score.eq(p.value),
        ]
        return m
