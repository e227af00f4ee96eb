"""Weights the experts' outputs, adds them to their tokens' words, and gives these out as float32."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory, ReadPort, WritePort
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moe_hw.arch import ACC_BITS, EXP_BITS, ROWS, Arch
from rtl_gen.arith import Pipeline, align, align16, bit_length, magnitude, round16, round_halves, shift_halves
from rtl_gen.types import SlotRead, layer_layout, result_layout, slot_bits

WORD_MAX = (1 << ACC_BITS - 1) - 1
"""Largest combine word; sums saturate at it and at its negative."""

LATENCY = 14
"""Cycles from a result to the pulse of ``job_done``, beyond one for each column."""

LARGEST_FLOAT = 0x7F7FFFFF
"""Bits of the largest finite float32."""


class Combine(wiring.Component):
    """The combine memory: a sum of weighted expert outputs for every element of every token.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    results : In(stream of result_layout(arch)), kind DOWN
        Accumulators of one slot and column group. Throughput: a column a cycle; waits for nothing but ``clearing``.
    layer : In(layer_layout())
        The layer at work, stable from ``clear`` to the last output.
    slot : Out(SlotRead(arch))
        Looks up the routing weights.
    job_done : Out(1)
        Pulse, ``columns + LATENCY`` cycles after a result with ``last``: all sums are in memory.
    clear : In(1), clearing : Out(1)
        A pulse of ``clear`` zeroes the words of the batch, one a cycle, while ``clearing`` is 1.
    read : In(1), output : Out(stream of 32 bits)
        A pulse of ``read`` starts the output: float32 ``[tokens, 32 * hidden_blocks]``, one a cycle.
    overflow : Out(1)
        A sum or an addend saturated since the last ``clear``.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "results": In(stream.Signature(result_layout(arch))),
                "layer": In(layer_layout()),
                "slot": Out(SlotRead(arch)),
                "job_done": Out(1),
                "clear": In(1),
                "clearing": Out(1),
                "read": In(1),
                "output": Out(stream.Signature(32)),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        m.submodules.words = words = Memory(shape=signed(ACC_BITS), depth=arch.combine_elements, init=[])
        m.submodules.exponents = exponents = Memory(shape=signed(EXP_BITS), depth=arch.max_tokens, init=[])
        read, write = words.read_port(), words.write_port()

        p = self._columns(m, exponents.write_port())
        self._weight(p)
        self._add(m, p, read, write)
        self._walk(m, read, write, exponents.read_port())
        return m

    def _columns(self, m: Module, exponent: WritePort) -> Pipeline:
        """Holds a result and shifts it out column by column; the weight arrives with the first stage."""
        arch, layer = self.arch, self.layer
        word = Signal(result_layout(arch))
        held = Signal()
        column = Signal(range(arch.columns))
        last_column = Signal()
        m.d.comb += [
            last_column.eq(column == arch.columns - 1),
            self.results.ready.eq((~held | last_column) & ~self.clearing),
            self.slot.parity.eq(word.parity),
            self.slot.index.eq(word.slot),
            exponent.en.eq(held),
            exponent.addr.eq(word.token),
            exponent.data.eq(word.token_exponent),
        ]
        with m.If(self.results.ready):
            m.d.sync += [word.eq(self.results.payload), held.eq(self.results.valid), column.eq(0)]
        with m.Else():
            m.d.sync += [column.eq(column + 1), word.acc.eq(word.acc.as_value() >> ACC_BITS)]

        p = Pipeline(m, held)
        p.stage(
            acc=word.acc[0],
            exponent=word.base_exponent + Mux(word.shared, layer.shared_down_exponent, layer.down_exponent),
            right=(word.token_exponent << 1) + layer.combine_exponent + 15,
            block=word.token * layer.hidden_blocks,
            element=Cat(column, word.group),
            last=word.last & last_column,
        )
        p.stage(
            negative=p.acc[-1],
            acc=magnitude(p.acc),
            weight=self.slot.data.weight.mantissa,
            right=p.right - self.slot.data.weight.exponent,
            address=((p.block << ceil_log2(ROWS)) + p.element)[: ceil_log2(arch.combine_elements)],
            block=None,
            element=None,
        )
        return p

    def _weight(self, p: Pipeline) -> None:
        """The addend: the accumulator times its weight, shifted to the token's exponent."""
        p.stage(length=bit_length(p.acc))
        p.stage(aligned=align16(p.acc, p.length), acc=None)
        mantissa, exponent = round16(p.aligned, p.length, p.exponent)
        p.stage(mantissa=mantissa, exponent=exponent, aligned=None, length=None)
        p.stage(product=p.mantissa * p.weight, right=p.right - p.exponent, mantissa=None, weight=None, exponent=None)
        p.stage(beyond=(p.right < 0) & p.product.any(), amount=Mux(p.right > 63, 63, p.right)[:6], right=None)
        p.stage(halves=shift_halves(Cat(Const(0, 15), p.product), p.amount), product=None, amount=None)
        p.stage(addend=Mux(p.beyond, WORD_MAX, round_halves(p.halves))[: ACC_BITS - 1], halves=None)

    def _add(self, m: Module, p: Pipeline, read: ReadPort, write: WritePort) -> None:
        """Adds to the word in memory.

        A word is written three cycles after it was read. The same address does not come again before all columns of
        its result, four or more, have passed: there is nothing to forward.
        """
        m.d.comb += [read.en.eq(p.valid), read.addr.eq(p.address)]
        p.stage(addend=Mux(p.negative, -p.addend, p.addend), negative=None)
        p.stage(word=read.data)
        p.stage(total=p.word + p.addend, word=None, addend=None)
        above, below = p.total > WORD_MAX, p.total < -WORD_MAX
        m.d.comb += [
            write.en.eq(p.valid),
            write.addr.eq(p.address),
            write.data.eq(Mux(above, WORD_MAX, Mux(below, -WORD_MAX, p.total))),
        ]
        m.d.sync += self.job_done.eq(p.valid & p.last)
        with m.If(self.clear):
            m.d.sync += self.overflow.eq(0)
        with m.Elif(p.valid & (above | below | p.beyond)):
            m.d.sync += self.overflow.eq(1)

    def _walk(self, m: Module, read: ReadPort, write: WritePort, exponent: ReadPort) -> None:
        """Visits all words of the batch in order, to clear them or to give them out."""
        address = Signal.like(read.addr)
        element = Signal(len(self.layer.hidden_blocks) + ceil_log2(ROWS))
        token = Signal(slot_bits(self.arch))
        step, end_of_token, end = Signal(), Signal(), Signal()
        m.d.comb += [
            end_of_token.eq(element == (self.layer.hidden_blocks << ceil_log2(ROWS)) - 1),
            end.eq(end_of_token & (token == self.layer.tokens - 1)),
        ]
        with m.If(step):
            m.d.sync += [
                address.eq(Mux(end, 0, address + 1)),
                element.eq(Mux(end_of_token, 0, element + 1)),
                token.eq(Mux(end, 0, token + end_of_token)),
            ]

        enable, reading = Signal(), Signal()
        m.d.comb += enable.eq(~self.output.valid | self.output.ready)
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.clear):
                    m.next = "CLEAR"
                with m.Elif(self.read):
                    m.next = "READ"
            with m.State("CLEAR"):
                m.d.comb += [step.eq(1), self.clearing.eq(1), write.en.eq(1), write.addr.eq(address), write.data.eq(0)]
                with m.If(end):
                    m.next = "IDLE"
            with m.State("READ"):
                m.d.comb += [step.eq(enable), reading.eq(1), read.en.eq(enable), read.addr.eq(address)]
                with m.If(end & enable):
                    m.next = "IDLE"

        m.d.comb += [exponent.en.eq(enable), exponent.addr.eq(token)]
        p = Pipeline(m, reading, enable)
        p.stage()
        p.stage(word=read.data, exponent=(exponent.data << 1) + self.layer.combine_exponent)
        self._convert(p)
        m.d.comb += [self.output.valid.eq(p.valid), self.output.payload.eq(p.bits)]

    def _convert(self, p: Pipeline) -> None:
        """``word * 2**exponent`` to float32."""
        p.stage(negative=p.word[-1], word=magnitude(p.word))
        p.stage(length=bit_length(p.word))
        p.stage(aligned=align(p.word, p.length), exponent=p.exponent + p.length + 126, word=None, length=None)
        kept, half, rest = p.aligned[-24:], p.aligned[-25], p.aligned[:-25]
        p.stage(zero=~kept[-1], rounded=kept + (half & (rest.any() | kept[0])), aligned=None)
        p.stage(zero=p.zero, fraction=p.rounded[:23], exponent=p.exponent + p.rounded[24], rounded=None)
        finite = Mux(p.exponent > 254, LARGEST_FLOAT, Cat(p.fraction, p.exponent[:8]))[:31]
        p.stage(
            bits=Mux(p.zero | (p.exponent < 1), 0, Cat(finite, p.negative)),
            zero=None,
            fraction=None,
            exponent=None,
            negative=None,
        )
