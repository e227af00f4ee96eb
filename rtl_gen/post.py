"""SwiGLU: gate and up accumulators of the array become hidden activations."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moe_hw.arch import ACC_BITS, Arch
from moe_hw.tables import SIGMOID_STEPS, SIGMOID_VALUES
from rtl_gen.arith import Pipeline, align16, bit_length, magnitude, round16
from rtl_gen.types import hidden_values_layout, layer_layout, result_layout

ONE = 1 << 16
"""One, as a value of the sigmoid."""

LATENCY = 18
"""Cycles from a result to its first activation."""


def sigmoid_layout() -> data.StructLayout:
    """A piece of the sigmoid: its first value less one half, and how much it rises."""
    return data.StructLayout({"value": 16, "rise": 10})


class Post(wiring.Component):
    """Applies ``silu(gate) * up`` to the accumulators of the gate_up phase.

    Even columns of a result are gates, odd ones the ups that belong to them.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    results : In(stream of result_layout(arch)), kind UP
        Accumulators of one slot and column group.
    layer : In(layer_layout())
        The layer at work, stable while there are results.
    values : Out(stream of hidden_values_layout(arch))
        ``columns / 2`` activations for each result, in order. Latency: ``LATENCY``; throughput: ``lanes`` a cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "results": In(stream.Signature(result_layout(arch))),
                "layer": In(layer_layout()),
                "values": Out(stream.Signature(hidden_values_layout(arch))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        enable = Signal()
        m.d.comb += enable.eq(~self.values.valid | self.values.ready)
        out = self.values.payload
        for lane, p in enumerate(self._pairs(m, enable)):
            self._normalise(p)
            self._sigmoid(m, p, enable, lane)
            self._multiply(p)
            value = out.values[lane]
            m.d.comb += [value.sign.eq(p.negative), value.mantissa.eq(p.mantissa), value.exponent.eq(p.exponent)]
            if lane == 0:
                m.d.comb += [
                    self.values.valid.eq(p.valid),
                    out.slot.eq(p.slot),
                    out.unused.eq(p.unused),
                    out.shared.eq(p.shared),
                    out.neuron.eq(p.neuron),
                    out.last.eq(p.last),
                ]
        return m

    def _pairs(self, m: Module, enable: Signal) -> list[Pipeline]:
        """Holds a result and shifts it out, a pair for each lane at a time."""
        lanes = self.arch.lanes
        steps = self.arch.columns // 2 // lanes
        word = Signal(result_layout(self.arch))
        held = Signal()
        step = Signal(range(steps))
        last_step = Signal()
        m.d.comb += [
            last_step.eq(step == steps - 1),
            self.results.ready.eq(~held | (enable & last_step)),
        ]
        with m.If(self.results.ready):
            m.d.sync += [word.eq(self.results.payload), held.eq(self.results.valid), step.eq(0)]
        with m.Elif(enable):
            m.d.sync += [step.eq(step + 1), word.acc.eq(word.acc.as_value().shift_right(2 * lanes * ACC_BITS))]

        layer = self.layer
        pipelines = []
        for lane in range(lanes):
            p = Pipeline(m, held, enable)
            which = {}
            if lane == 0:
                which = {
                    "slot": word.slot,
                    "unused": word.of.unused,
                    "shared": word.shared,
                    "neuron": Cat(Const(0, exact_log2(lanes)), step, word.group)[:16],
                    "last": word.last & last_step,
                }
            p.stage(
                gate=word.acc[2 * lane],
                up=word.acc[2 * lane + 1],
                gate_exponent=word.base_exponent + Mux(word.shared, layer.shared_gate_exponent, layer.gate_exponent),
                up_exponent=word.base_exponent + Mux(word.shared, layer.shared_up_exponent, layer.up_exponent),
                **which,
            )
            pipelines.append(p)
        return pipelines

    def _normalise(self, p: Pipeline) -> None:
        """Mantissas and exponents of gate and up."""
        p.stage(
            gate_negative=p.gate[-1],
            negative=p.gate[-1] ^ p.up[-1],
            gate=magnitude(p.gate),
            up=magnitude(p.up),
        )
        p.stage(gate_length=bit_length(p.gate), up_length=bit_length(p.up))
        p.stage(gate=align16(p.gate, p.gate_length), up=align16(p.up, p.up_length))
        gate, gate_exponent = round16(p.gate, p.gate_length, p.gate_exponent)
        up, up_exponent = round16(p.up, p.up_length, p.up_exponent)
        p.stage(
            gate=gate,
            gate_exponent=gate_exponent,
            up=up,
            exponent=gate_exponent + up_exponent,
            gate_length=None,
            up_length=None,
            up_exponent=None,
        )

    def _sigmoid(self, m: Module, p: Pipeline, enable: Signal, lane: int) -> None:
        """Sigmoid of the gate, and meanwhile gate times up."""
        # The argument is `4 * mantissa >> back`. A `back` below 0 is beyond the table; 18 and more leave 0.
        back = -p.gate_exponent - 12
        p.stage(
            product=p.gate * p.up,
            beyond=p.gate_exponent > -12,
            back=Mux(back > 31, 31, back)[:5],
            up=None,
            gate_exponent=None,
        )
        p.stage(z=((p.gate << 2) >> p.back)[:18], gate=None, back=None)

        pieces = [{"value": int(v), "rise": int(w)} for v, w in zip(SIGMOID_VALUES, SIGMOID_STEPS, strict=False)]
        m.submodules[f"table_{lane}"] = table = Memory(shape=sigmoid_layout(), depth=len(pieces), init=pieces)
        read = table.read_port()
        m.d.comb += [read.en.eq(enable), read.addr.eq(p.z[9:])]
        p.stage(rest=p.z[:9], z=None)
        # The memory's output is that stage's too.
        p.stage(value=read.data.value, rise=read.data.rise)
        p.stage(step=p.rise * p.rest, rise=None, rest=None)
        p.stage(sigmoid=(ONE // 2 + p.value + ((p.step + 256) >> 9))[:17], step=None, value=None)
        positive = Mux(p.beyond, Const(ONE, 17), p.sigmoid)
        p.stage(sigmoid=Mux(p.gate_negative, ONE - positive, positive)[:17], gate_negative=None, beyond=None)

    def _multiply(self, p: Pipeline) -> None:
        """The product of gate and up, normalised, times the sigmoid, normalised."""
        # Two normalised mantissas make 31 or 32 bits, or 0.
        length = Mux(p.product[31], 32, 31)
        aligned = Mux(p.product[31], p.product[15:], p.product[14:31])
        product, exponent = round16(aligned, length, p.exponent)
        p.stage(product=product, exponent=exponent)
        p.stage(product=p.product * p.sigmoid, exponent=p.exponent - 16, sigmoid=None)
        p.stage(length=bit_length(p.product))
        p.stage(aligned=align16(p.product, p.length), product=None)
        mantissa, exponent = round16(p.aligned, p.length, p.exponent)
        p.stage(mantissa=mantissa, exponent=exponent, aligned=None, length=None)
