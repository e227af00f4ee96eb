"""The SDRAM controller, in the clock of the chip: row commands, column commands and the pins."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from boards import Memory
from rtl_gen.sdram_columns import SdramColumns
from rtl_gen.sdram_pins import SdramPins
from rtl_gen.sdram_rows import SdramRows
from rtl_gen.sdram_timing import BURST
from rtl_gen.sdram_types import segment_layout, word_layout


class SdramController(wiring.Component):
    """Serves segments in their order; the next one's row is opened meanwhile.

    Parameters
    ----------
    memory : Memory
        The board's memory.

    Members
    -------
    segments : In(stream of segment_layout(memory))
    writes : In(stream of word_layout(memory))
        The words of all write segments, in order.
    words : Out, word_valid : Out(1)
        The words of all read segments, in order; they do not wait.
    pins : Out(SdramPins(memory))
        For :class:`rtl_gen.sdram_pins.SdramPads`.

    Latency: 15 clocks from a read segment to its first word if the row is open and the pipe empty. Throughput: a word
    every two clocks, less the refreshes, 16 clocks of 1,038, and changes of direction.
    """

    def __init__(self, memory: Memory):
        self.memory = memory
        super().__init__(
            {
                "segments": In(stream.Signature(segment_layout(memory))),
                "writes": In(stream.Signature(word_layout(memory))),
                "words": Out(BURST * memory.data_bits),
                "word_valid": Out(1),
                "pins": Out(SdramPins(memory)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.rows = rows = SdramRows(self.memory)
        m.submodules.columns = columns = SdramColumns(self.memory)
        wiring.connect(m, wiring.flipped(self.segments), rows.segments)
        wiring.connect(m, wiring.flipped(self.writes), columns.writes)
        phase = Signal()
        m.d.sync += phase.eq(~phase)
        m.d.comb += [rows.phase.eq(phase), columns.phase.eq(phase)]
        for name in ("segment", "ready", "initialised"):
            m.d.comb += getattr(columns, name).eq(getattr(rows, name))
        for name in ("taken", "active", "active_bank", "column", "column_write"):
            m.d.comb += getattr(rows, name).eq(getattr(columns, name))

        # Row commands leave in the first clock of a slot, column commands in the second: one of the two is none.
        pins = self.pins
        for name in ("ras", "cas", "we"):
            m.d.comb += getattr(pins, name).eq(getattr(rows.command, name) | getattr(columns.command, name))
        m.d.comb += [
            pins.clk_en.eq(1),
            pins.cs.eq(1),
            pins.dq_o.eq(columns.dq_o),
            pins.dq_oe.eq(columns.dq_oe),
            pins.dqm.eq(columns.dqm),
            columns.dq_i.eq(pins.dq_i),
            self.words.eq(columns.words),
            self.word_valid.eq(columns.word_valid),
        ]
        with m.If(phase):
            m.d.comb += [pins.ba.eq(columns.command.bank), pins.a.eq(columns.command.address)]
        with m.Else():
            m.d.comb += [pins.ba.eq(rows.command.bank), pins.a.eq(rows.command.address)]
        return m
