"""The activation function: gate and up accumulators of the array become hidden activations."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moe_hw.arch import ACC_BITS, Arch
from moe_hw.tables import GATE_STEPS, GATE_VALUES, RELU
from rtl_gen import softcap
from rtl_gen.arith import Pipeline, align16, bit_length, exponent16, magnitude, mantissa16, round16
from rtl_gen.softcap import Softcap
from rtl_gen.types import hidden_values_layout, layer_layout, result_layout

ONE = 1 << 16
"""One, as a value of ``s``."""

LATENCY = 21 + softcap.LATENCY
"""Cycles from a result to its first activation."""

QUEUE = LATENCY + 4
"""Activations that can be under way or wait. A pipeline that stops as a whole is 2,700 flip-flops that wait for one
signal; this one never stops, and begins nothing that has no room at its end."""


def piece_layout() -> data.StructLayout:
    """A piece of ``s``: its first value less one half, and how much it rises."""
    return data.StructLayout({"value": 16, "rise": 10})


class Post(wiring.Component):
    """Applies the activation function to the accumulators of the gate_up phase.

    Even columns of a result are gates, odd ones the ups that belong to them; of two-layer experts all are gates.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    results : In(stream of result_layout(arch)), kind UP
        Accumulators of one slot and column group.
    layer : In(layer_layout())
        The layer at work, stable from a cycle before its first result to its last value.
    values : Out(stream of hidden_values_layout(arch))
        ``columns / 2`` activations for each result, or ``columns``, in order. Latency: ``LATENCY``; throughput:
        ``lanes`` a cycle, or half of that with softcaps, whose first one comes a cycle later.
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
        m.submodules.queue = queue = SyncFIFOBuffered(width=self.values.payload.shape().size, depth=QUEUE)
        out = data.View(self.values.payload.shape(), queue.w_data)
        m.d.comb += [
            self.values.valid.eq(queue.r_rdy),
            self.values.payload.as_value().eq(queue.r_data),
            queue.r_en.eq(self.values.ready),
        ]
        for lane, p in enumerate(self._arguments(m)):
            self._normalise(p)
            self._limit(p)
            self._factors(m, p, lane)
            self._multiply(p)
            value = out.values[lane]
            m.d.comb += [value.sign.eq(p.negative), value.mantissa.eq(p.mantissa), value.exponent.eq(p.exponent)]
            if lane == 0:
                m.d.comb += [
                    queue.w_en.eq(p.valid),
                    out.slot.eq(p.slot),
                    out.unused.eq(p.unused),
                    out.shared.eq(p.shared),
                    out.neuron.eq(p.neuron),
                    out.last.eq(p.last),
                ]
        return m

    def _arguments(self, m: Module) -> list[Pipeline]:
        """Holds a result and shifts it out, two accumulators for each lane at a time.

        They are a gate and an up, or two gates: a step of a two-layer expert takes two cycles. So does one with
        softcaps: gate and up come twice, the first time for the gate to be capped, the second time for the up.
        """
        lanes = self.arch.lanes
        steps = self.arch.columns // 2 // lanes
        layer = self.layer
        word = Signal(result_layout(self.arch))
        held = Signal()
        step = Signal(range(steps))
        upper = Signal()  # the second cycle of a step
        last = Signal()
        one_cycle, capped = Signal(), Signal()
        m.d.sync += [one_cycle.eq(layer.gated & ~layer.softcap), capped.eq(layer.softcap)]

        # What the next cycle does is a register, for it reaches the whole word. So room is known a cycle late, and the
        # last place stays free. A capped up follows its gate, which took its place.
        room = Signal(range(QUEUE + 1), init=QUEUE)
        go, shift = Signal(), Signal()
        held_next, upper_next, go_next, last_next = Signal(), Signal(), Signal(), Signal()
        step_next = Signal.like(step)
        begun = go & ~(upper & capped)
        m.d.comb += [
            held_next.eq(Mux(self.results.ready, self.results.valid, held)),
            step_next.eq(Mux(self.results.ready, 0, step + shift)),
            upper_next.eq(Mux(self.results.ready, 0, Mux(go, ~(one_cycle | upper), upper))),
            go_next.eq(held_next & ((room > 1) | (upper_next & capped))),
            last_next.eq((step_next == steps - 1) & (one_cycle | upper_next)),
        ]
        m.d.sync += [
            held.eq(held_next),
            step.eq(step_next),
            upper.eq(upper_next),
            go.eq(go_next),
            last.eq(last_next),
            shift.eq(go_next & (one_cycle | upper_next)),
            self.results.ready.eq(~held_next | (go_next & last_next)),
            room.eq(room + (self.values.valid & self.values.ready) - begun),
        ]
        with m.If(self.results.ready):
            m.d.sync += word.eq(self.results.payload)
        with m.Elif(shift):
            m.d.sync += word.acc.eq(word.acc.as_value().shift_right(2 * lanes * ACC_BITS))

        pipelines = []
        for lane in range(lanes):
            p = Pipeline(m, go)
            which = {}
            if lane == 0:
                place = Mux(layer.gated, Cat(step, word.group), Cat(upper, step, word.group))
                which = {
                    "slot": word.slot,
                    "unused": word.of.unused,
                    "neuron": Cat(Const(0, exact_log2(lanes)), place)[:16],
                    "last": word.last & last,
                }
            p.stage(
                upper=upper,
                shared=word.shared,
                gate=Mux(layer.gated, word.acc[2 * lane], Mux(upper, word.acc[lanes + lane], word.acc[lane])),
                up=word.acc[2 * lane + 1],
                gate_exponent=word.base_exponent + Mux(word.shared, layer.shared_gate_exponent, layer.gate_exponent),
                up_exponent=word.base_exponent + Mux(word.shared, layer.shared_up_exponent, layer.up_exponent),
                **which,
            )
            pipelines.append(p)
        return pipelines

    def _normalise(self, p: Pipeline) -> None:
        """Mantissas and exponents of gate and up."""
        layer = self.layer
        p.stage(
            gate_negative=p.gate[-1],
            up_negative=Mux(layer.gated, p.up[-1], layer.square & p.gate[-1]),
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
            up_exponent=up_exponent,
            gate_length=None,
            up_length=None,
        )

    def _limit(self, p: Pipeline) -> None:
        """The limits of gate and up; the up of a two-layer expert is one, or the gate."""
        layer = self.layer

        def most(name: str) -> Value:
            return Mux(p.shared, layer[f"shared_{name}"], layer[name]).as_signed()

        def beyond(mantissa: Value, exponent: Value, limit: Value) -> Value:
            # Normalised numbers are ordered by exponent and mantissa together.
            return Cat(mantissa, exponent).as_signed() > limit

        def limited(mantissa: Value, exponent: Value, limit: Value, applies: Value) -> tuple[Value, Value]:
            return Mux(applies, limit[:16], mantissa), Mux(applies, limit[16:].as_signed(), exponent)

        p.stage(
            gate_most=most("gate_limit"),
            up_most=Mux(p.up_negative, most("up_lower_limit"), most("up_limit")),
        )
        p.stage(
            gate_beyond=~p.gate_negative & beyond(p.gate, p.gate_exponent, p.gate_most),
            up_beyond=beyond(p.up, p.up_exponent, p.up_most),
        )
        gate, gate_exponent = limited(p.gate, p.gate_exponent, p.gate_most, p.gate_beyond)
        up, up_exponent = limited(p.up, p.up_exponent, p.up_most, p.up_beyond)
        p.stage(
            gate_beyond=None,
            up_beyond=None,
            gate_most=None,
            up_most=None,
            gate=gate,
            gate_exponent=gate_exponent,
            up=Mux(layer.gated, up, Mux(layer.square, gate, 1 << 15)),
            up_exponent=Mux(layer.gated, up_exponent, Mux(layer.square, gate_exponent, -15)),
            negative=p.gate_negative ^ p.up_negative,
            up_negative=None,
        )

    def _factors(self, m: Module, p: Pipeline, lane: int) -> None:
        """``s`` of the gate, and meanwhile the softcaps; then gate times up."""
        m.submodules[f"softcap_{lane}"] = cap = Softcap()
        m.d.comb += [
            cap.layer.eq(self.layer),
            cap.of_up.eq(p.upper),
            cap.mantissa.eq(Mux(p.upper, p.up, p.gate)),
            cap.exponent.eq(Mux(p.upper, p.up_exponent, p.gate_exponent)),
        ]
        # The argument is `4 * mantissa >> back`. A `back` below 0 is beyond the table; 18 and more leave 0.
        back = -p.gate_exponent - 12
        p.stage(
            beyond=(p.gate_exponent > -12) | (self.layer.activation == RELU),
            back=Mux(back > 31, 31, back)[:5],
        )
        p.stage(z=((p.gate << 2) >> p.back)[:18], back=None)

        pieces = [
            {"value": int(value), "rise": int(rise)}
            for values, rises in zip(GATE_VALUES, GATE_STEPS, strict=True)
            for value, rise in zip(values, rises, strict=False)
        ]
        m.submodules[f"table_{lane}"] = table = Memory(shape=piece_layout(), depth=len(pieces), init=pieces)
        read = table.read_port()
        m.d.comb += read.addr.eq(Cat(p.z[9:], self.layer.activation))
        p.stage(rest=p.z[:9], z=None)
        # The memory's output is that stage's too.
        p.stage(value=read.data.value, rise=read.data.rise)
        p.travel()
        p.stage(step=p.rise * p.rest, rise=None, rest=None)
        p.stage(factor=(ONE // 2 + p.value + ((p.step + 256) >> 9))[:17], step=None, value=None)
        positive = Mux(p.beyond, Const(ONE, 17), p.factor)
        p.stage(factor=Mux(p.gate_negative, ONE - positive, positive)[:17], gate_negative=None, beyond=None)
        for _ in range(softcap.LATENCY - 8):
            p.stage()

        # The capped gate came in the cycle before the capped up.
        capped_gate = Pipeline(m, 1)
        capped_gate.stage(mantissa=cap.o_mantissa, exponent=cap.o_exponent)
        capped = self.layer.softcap
        p.stage(
            valid=p.valid & (p.upper | ~capped),
            gate=Mux(capped, capped_gate.mantissa, p.gate),
            up=Mux(capped, cap.o_mantissa, p.up),
            exponent=Mux(
                capped, capped_gate.exponent + cap.o_exponent, p.gate_exponent + p.up_exponent
            ),
            upper=None,
            gate_exponent=None,
            up_exponent=None,
        )
        p.travel()
        p.stage(product=p.gate * p.up, gate=None, up=None)

    def _multiply(self, p: Pipeline) -> None:
        """The product of gate and up, normalised, times ``s``, normalised."""
        # Two normalised mantissas make 31 or 32 bits, or 0.
        p.stage(long=p.product[31], aligned=Mux(p.product[31], p.product[15:], p.product[14:31]), product=None)
        product, carry = mantissa16(p.aligned)
        p.stage(product=product, carry=carry, some=p.aligned[-1], aligned=None)
        exponent = exponent16(p.some, Mux(p.long, 32, 31), p.exponent, p.carry)
        p.stage(exponent=exponent, some=None, long=None, carry=None)
        p.stage(product=p.product * p.factor, exponent=p.exponent - 16, factor=None)
        p.stage(length=bit_length(p.product))
        p.stage(aligned=align16(p.product, p.length), product=None)
        mantissa, exponent = round16(p.aligned, p.length, p.exponent)
        p.stage(mantissa=mantissa, exponent=exponent, aligned=None, length=None)
