"""Weights the experts' outputs and adds them to their tokens' words."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from moe_hw.arch import ACC_BITS, EXP_BITS, Arch
from rtl_gen.arith import Pipeline, align16, bit_length, magnitude, round16, round_halves, shift_halves
from rtl_gen.types import combine_exponent, groups_of, layer_layout, result_layout, token_bits

WORD_MAX = (1 << ACC_BITS - 1) - 1
"""Largest combine word; sums saturate at it and at its negative."""

LATENCY = 15
"""Cycles from a result to the pulse of ``job_done``, beyond one for each ``combine_lanes`` columns."""


class SumRead(wiring.Signature):
    """Access to the sums while no results are under way, from the reader's side.

    Members:
        enable, address: read ``lanes`` sums; their words are zero from then on.
        sums: they follow by three cycles, and stay until the next read.
        token, exponent: whose sums they are, and its exponent E, which comes and stays with them.
    """

    def __init__(self, arch: Arch):
        super().__init__(
            {
                "enable": Out(1),
                "address": Out(ceil_log2(arch.combine_elements // arch.lanes)),
                "sums": In(data.ArrayLayout(signed(ACC_BITS), arch.lanes)),
                "token": Out(token_bits(arch)),
                "exponent": In(signed(EXP_BITS)),
            }
        )


class Combine(wiring.Component):
    """The combine buffer: a sum of weighted expert outputs for every column of the chunk, of every token.

    A token has ``groups_of(chunk_blocks)`` rows of ``columns`` sums.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    results : In(stream of result_layout(arch)), kind DOWN
        Accumulators of one slot and column group. Throughput: ``combine_lanes`` columns a cycle; waits for ``hold``.
    layer : In(layer_layout())
        The layer at work, stable from its first result to the last output.
    job_done : Out(1)
        Pulse, ``columns / combine_lanes + LATENCY`` cycles after a result with ``last``: all sums are in memory.
    hold : In(1)
        Takes no results, from the second cycle on.
    read : In(SumRead(arch))
    clear : In(1)
        Pulse: forget the overflow.
    overflow : Out(1)
        A sum or an addend saturated since the last ``clear``.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "results": In(stream.Signature(result_layout(arch))),
                "layer": In(layer_layout()),
                "job_done": Out(1),
                "hold": In(1),
                "read": In(SumRead(arch)),
                "clear": In(1),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        word = data.ArrayLayout(signed(ACC_BITS), arch.combine_lanes)
        depth = arch.combine_elements // arch.combine_lanes
        m.submodules.sums = sums = Memory(shape=word, depth=depth, init=[])
        m.submodules.exponents = exponents = Memory(shape=signed(EXP_BITS), depth=arch.max_tokens, init=[])
        read, write = sums.read_port(), sums.write_port(granularity=arch.lanes)
        exponent_read, exponent_write = exponents.read_port(), exponents.write_port()

        lanes = self._columns(m)
        for p in lanes:
            self._weight(p)
        first = lanes[0]
        # A word may be several times as wide as what the reader takes at a time.
        parts = arch.combine_lanes // arch.lanes
        read_part, part, part_out = (Signal(range(parts)) for _ in range(3))
        reads = Signal()
        # Addresses come from registers, for they reach many block RAMs. So does the word they hold.
        word_out = Signal.like(read.data.as_value())
        m.d.sync += [
            reads.eq(self.read.enable),
            read.en.eq(first.valid | self.read.enable),
            read.addr.eq(Mux(first.valid, first.address, self.read.address >> exact_log2(parts))),
            read_part.eq(self.read.address[: exact_log2(parts)]),
            exponent_read.addr.eq(self.read.token),
            word_out.eq(read.data),
            part_out.eq(part),
            self.read.exponent.eq(exponent_read.data),
        ]
        with m.If(reads):
            m.d.sync += part.eq(read_part)
        for p in lanes:
            self._read(p)
        m.d.comb += [
            self.read.sums.as_value().eq(word_out.word_select(part_out, arch.lanes * ACC_BITS)),
            exponent_read.en.eq(reads),
            exponent_write.en.eq(first.valid),
            exponent_write.addr.eq(first.token),
            exponent_write.data.eq(first.token_exponent),
        ]
        for lane, p in enumerate(lanes):
            self._take(p, read.data[lane])
        # A cycle after it was read, for a block RAM does not say what comes of a word that is written meanwhile.
        clears = Signal()
        m.d.sync += [
            clears.eq(reads),
            write.en.eq(Mux(reads, 1 << read_part, first.valid.replicate(parts))),
            write.addr.eq(Mux(reads, read.addr, first.address)),
        ]
        lost = Const(0, 1)
        for lane, p in enumerate(lanes):
            lost = lost | self._add(m, p, write.data[lane])
        with m.If(clears):
            m.d.comb += write.data.as_value().eq(0)
        m.d.sync += self.job_done.eq(first.valid & first.last)
        with m.If(self.clear):
            m.d.sync += self.overflow.eq(0)
        with m.Elif(first.valid & lost):
            m.d.sync += self.overflow.eq(1)
        return m

    def _columns(self, m: Module) -> list[Pipeline]:
        """Holds a result and shifts it out, a column for each lane at a time."""
        arch, layer = self.arch, self.layer
        steps = arch.columns // arch.combine_lanes
        word = Signal(result_layout(arch))
        held, last_step = Signal(), Signal()
        step = Signal(range(steps))
        held_next, last_step_next, step_next = Signal(), Signal(), Signal.like(step)
        m.d.comb += [
            held_next.eq(Mux(self.results.ready, self.results.valid, held & ~last_step)),
            step_next.eq(Mux(self.results.ready, 0, step + held)),
            last_step_next.eq(step_next == steps - 1),
        ]
        m.d.sync += [
            held.eq(held_next),
            step.eq(step_next),
            last_step.eq(last_step_next),
            # A register, for it reaches the whole word.
            self.results.ready.eq((~held_next | last_step_next) & ~self.hold),
        ]
        with m.If(self.results.ready):
            m.d.sync += word.eq(self.results.payload)
        with m.Elif(held):
            m.d.sync += word.acc.eq(word.acc.as_value().shift_right(arch.combine_lanes * ACC_BITS))
        address_bits = ceil_log2(arch.combine_elements // arch.combine_lanes)
        groups = Signal(16)
        m.d.sync += groups.eq(groups_of(arch, layer.chunk_blocks))

        pipelines = []
        for lane in range(arch.combine_lanes):
            p = Pipeline(m, held)
            which = {}
            if lane == 0:
                which = {"first": word.of.token * groups, "row": Cat(step, word.group), "last": word.last & last_step}
                which |= {"token": word.of.token, "token_exponent": word.token_exponent}
            p.stage(
                acc=word.acc[lane],
                exponent=word.base_exponent + Mux(word.shared, layer.shared_down_exponent, layer.down_exponent),
                right=combine_exponent(layer, word.token_exponent) + 15,
                weight=word.of.weight.mantissa,
                weight_negative=word.of.weight.negative,
                weight_exponent=word.of.weight.exponent,
                **which,
            )
            which = {}
            if lane == 0:
                place = (p.first << exact_log2(steps)) + p.row
                which = {"address": place[:address_bits], "first": None, "row": None}
            p.stage(
                negative=p.acc[-1] ^ p.weight_negative,
                acc=magnitude(p.acc),
                right=p.right - p.weight_exponent,
                weight_exponent=None,
                weight_negative=None,
                **which,
            )
            pipelines.append(p)
        return pipelines

    def _weight(self, p: Pipeline) -> None:
        """The addend: the accumulator times its weight, shifted to the token's exponent."""
        p.stage(length=bit_length(p.acc))
        p.stage(aligned=align16(p.acc, p.length), acc=None)
        mantissa, exponent = round16(p.aligned, p.length, p.exponent)
        p.stage(mantissa=mantissa, exponent=exponent, aligned=None, length=None)
        p.travel()
        p.stage(product=p.mantissa * p.weight, right=p.right - p.exponent, mantissa=None, weight=None, exponent=None)
        p.stage(beyond=(p.right < 0) & p.product.any(), amount=Mux(p.right > 63, 63, p.right)[:6], right=None)
        p.stage(halves=shift_halves(Cat(Const(0, 15), p.product), p.amount), product=None, amount=None)

    def _read(self, p: Pipeline) -> None:
        """The addend, while the word it is added to is read."""
        p.stage(addend=Mux(p.beyond, WORD_MAX, round_halves(p.halves))[: ACC_BITS - 1], halves=None)

    def _take(self, p: Pipeline, word: Value) -> None:
        """The word, when it has come."""
        p.stage(addend=Mux(p.negative, -p.addend, p.addend), negative=None)
        p.stage(word=word)

    def _add(self, m: Module, p: Pipeline, total: Value) -> Value:
        """Adds to the word in memory; returns whether that or the addend saturated.

        A word is written three cycles after it was read. The same address does not come again before all columns of
        its result, four cycles or more, have passed: there is nothing to forward.
        """
        p.stage(total=p.word + p.addend, word=None, addend=None)
        above, below = p.total > WORD_MAX, p.total < -WORD_MAX
        m.d.comb += total.eq(Mux(above, WORD_MAX, Mux(below, -WORD_MAX, p.total)))
        return above | below | p.beyond
