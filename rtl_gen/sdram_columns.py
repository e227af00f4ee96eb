"""Column commands of the SDRAM controller: reads and writes of the open row, and their data."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from boards import Memory
from rtl_gen.sdram_pins import PAD_CLOCKS
from rtl_gen.sdram_timing import BURST, SdramTiming
from rtl_gen.sdram_types import command_layout, segment_layout, word_layout


class SdramColumns(wiring.Component):
    """Reads and writes segments, a bus word in each slot, without a pause from one to the next.

    A bus word is the two transfers of one command, the lower half first. Whoever asks for words has room for them:
    what was read cannot wait.

    Parameters
    ----------
    memory : Memory
        The board's memory.

    Members
    -------
    phase : In(1)
        The second clock of a slot; column commands are decided in the first.
    segment : In(segment_layout(memory)), ready : In(1), taken : Out(1)
        The next segment, whose row is open.
    active : Out(1), active_bank : Out
        The bank of the segment that is under way.
    column : Out(1), column_write : Out(1)
        A column command is decided; it is a write.
    command : Out(command_layout(memory))
        For the pins, a clock after it was decided.
    initialised : In(1)
        Until then ``dqm`` is high, as the data sheets want it.
    writes : In(stream of word_layout(memory))
    words : Out, word_valid : Out(1)
        What was read.
    dq_o, dq_oe, dqm, dq_i : as in ``SdramPins``

    Latency: from a read's decision to its word five clocks and the chip's latency.
    """

    def __init__(self, memory: Memory):
        self.memory = memory
        segment, word = segment_layout(memory), word_layout(memory)
        super().__init__(
            {
                "phase": In(1),
                "segment": In(segment),
                "ready": In(1),
                "taken": Out(1),
                "active": Out(1),
                "active_bank": Out(segment["bank"].shape),
                "column": Out(1),
                "column_write": Out(1),
                "command": Out(command_layout(memory)),
                "initialised": In(1),
                "writes": In(stream.Signature(word)),
                "words": Out(BURST * memory.data_bits),
                "word_valid": Out(1),
                "dq_o": Out(memory.data_bits),
                "dq_oe": Out(1),
                "dqm": Out(memory.data_bits // 8),
                "dq_i": In(memory.data_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        timing = SdramTiming.of(self.memory)
        bits, lanes = self.memory.data_bits, self.memory.data_bits // 8

        # ---- the segment under way ----
        write, masked, last = Signal(), Signal(), Signal()
        column = Signal.like(self.segment.column)
        left = Signal.like(self.segment.length)
        m.d.comb += self.taken.eq(self.phase & self.ready & ~self.active)
        with m.If(self.taken):
            m.d.sync += [
                self.active.eq(1),
                self.active_bank.eq(self.segment.bank),
                write.eq(self.segment.write),
                masked.eq(self.segment.masked),
                column.eq(self.segment.column),
                left.eq(self.segment.length),
                last.eq(self.segment.length == 0),
            ]

        # ---- a command in each slot, but when the pins change direction or a word is not there yet ----
        slots = max(timing.turnaround, timing.write_to_read)
        turn = Signal(range(slots))  # slots in which the other direction has to wait
        wrote = Signal()
        go, driving = Signal(), Signal()
        m.d.comb += [
            go.eq(~self.phase & self.active & ((turn == 0) | (write == wrote)) & (~write | self.writes.valid)),
            self.column.eq(go),
            self.column_write.eq(write),
            # A clock later, from a register: the queue behind it is on the longest way.
            self.writes.ready.eq(self.phase & driving),
        ]
        command = self.command
        m.d.sync += [
            command.cas.eq(go),
            command.we.eq(go & write),
            command.bank.eq(self.active_bank),
            command.address.eq(column * BURST),
        ]
        with m.If(go):
            m.d.sync += [
                column.eq(column + 1),
                left.eq(left - 1),
                last.eq(left == 1),
                turn.eq(Mux(write, timing.write_to_read - 1, timing.turnaround - 1)),
                wrote.eq(write),
            ]
            with m.If(last):
                m.d.sync += self.active.eq(0)
        with m.Elif(~self.phase & (turn != 0)):
            m.d.sync += turn.eq(turn - 1)

        # ---- data to the chip: the lower half together with the command, the upper half a clock later ----
        word = Signal.like(self.writes.payload)
        with m.If(~self.phase):
            m.d.sync += [driving.eq(go & write), word.eq(self.writes.payload)]
            with m.If(masked):
                m.d.sync += word.strobe.eq(0)
        upper = ~self.phase
        m.d.comb += [
            self.dq_o.eq(word.data.word_select(upper, bits)),
            self.dq_oe.eq(driving),
            self.dqm.eq(Mux(driving, ~word.strobe.word_select(upper, lanes), (~self.initialised).replicate(lanes))),
        ]

        # ---- data from the chip ----
        reading = Signal(1 + PAD_CLOCKS + timing.latency + 1)
        lower = Signal(bits)
        m.d.sync += [reading.eq(Cat(go & ~write, reading)), lower.eq(self.dq_i)]
        m.d.comb += [self.words.eq(Cat(lower, self.dq_i)), self.word_valid.eq(reading[-1])]
        return m
