"""Softcaps: magnitudes that approach a limit smoothly."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moe_hw.arch import EXP_BITS
from moe_hw.tables import CAP_FALLS, CAP_STEPS
from rtl_gen.arith import Pipeline, round16
from rtl_gen.types import layer_layout

LATENCY = 13
"""Cycles from a magnitude to the capped one."""


def piece_layout() -> data.StructLayout:
    """A piece of ``t``: how far it has fallen from one where the piece starts, and how much it falls within it."""
    return data.StructLayout({"fallen": 16, "step": 9})


class Softcap(wiring.Component):
    """Caps magnitudes ``x``: ``c * tanh(x / c) = x * t(x / c)``, as in section 5 of ``docs/numerics.md``.

    Latency: ``LATENCY``; throughput: one a cycle.

    Members
    -------
    layer : In(layer_layout())
        With the caps of gate and up, stable while magnitudes are under way.
    of_up : In(1)
        Whether the magnitude is an up's, or a gate's.
    mantissa : In(16), exponent : In(signed(EXP_BITS))
        The magnitude, normalised.
    o_mantissa : Out(16), o_exponent : Out(signed(EXP_BITS))
        The capped one, normalised.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "layer": In(layer_layout()),
                "of_up": In(1),
                "mantissa": In(16),
                "exponent": In(signed(EXP_BITS)),
                "o_mantissa": Out(16),
                "o_exponent": Out(signed(EXP_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layer = self.layer
        p = Pipeline(m, Const(1))
        p.stage(
            mantissa=self.mantissa,
            exponent=self.exponent,
            of_up=self.of_up,
            inverse=Mux(self.of_up, layer.up_cap_inverse, layer.gate_cap_inverse),
        )

        # The argument is `mantissa * inverse >> 12 >> right`. A `right` below 0 is beyond the table.
        right = -(p.exponent + p.inverse[16:].as_signed() + 27)
        p.stage(beyond=right < 0, right=Mux(right > 31, 31, right)[:5])
        p.stage(product=p.mantissa * p.inverse[:16], inverse=None)
        p.stage(z=p.product[12:] >> p.right, product=None, right=None)

        pieces = [{"fallen": int(f), "step": int(d)} for f, d in zip(CAP_FALLS, CAP_STEPS, strict=False)]
        m.submodules.table = table = Memory(shape=piece_layout(), depth=len(pieces), init=pieces)
        read = table.read_port()
        m.d.comb += read.addr.eq(p.z[9:18])
        p.stage(rest=p.z[:9], beyond=p.beyond | p.z[18:].any(), z=None)
        # The memory's output is that stage's too.
        p.stage(fallen=read.data.fallen, step=read.data.step)
        p.travel()
        p.stage(step=p.step * p.rest, rest=None)
        p.stage(factor=((1 << 16) - p.fallen - ((p.step + 256) >> 9))[:17], step=None, fallen=None)

        p.travel()
        p.stage(product=p.mantissa * p.factor, factor=None, mantissa=None)
        # Mantissa and factor are at least 2^15 and 2^13, or the mantissa is 0.
        top = p.product[28:32]
        zeros = Mux(top[3], 0, Mux(top[2], 1, Mux(top[1], 2, 3)))
        cap = Mux(p.of_up, layer.up_cap, layer.gate_cap)
        p.stage(
            aligned=Mux(p.beyond, Cat(Const(0, 1), cap[:16]), (p.product << zeros)[15:32]),
            exponent=Mux(p.beyond, cap[16:].as_signed(), p.exponent - zeros),
            product=None,
            beyond=None,
            of_up=None,
        )
        mantissa, exponent = round16(p.aligned, Const(16), p.exponent)
        p.stage(mantissa=mantissa, exponent=exponent, aligned=None)
        m.d.comb += [self.o_mantissa.eq(p.mantissa), self.o_exponent.eq(p.exponent)]
        return m
