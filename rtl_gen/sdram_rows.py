"""Row commands of the SDRAM controller: initialisation, refresh, and the row of the next segment."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory as Table
from amaranth.lib.wiring import In, Out

from boards import Memory
from rtl_gen.sdram_timing import (
    BURST,
    MODE_BURST,
    MODE_LATENCY_SHIFT,
    POWER_UP_REFRESHES,
    PRECHARGE_ALL,
    SdramTiming,
)
from rtl_gen.sdram_types import command_layout, segment_layout


class SdramRows(wiring.Component):
    """Opens the row of the next segment while the columns of the one before are read or written.

    After power-up it initialises the chip. A refresh goes before the next segment, whose row is then opened again. A
    row stays open until another one of its bank is wanted, or a refresh.

    Parameters
    ----------
    memory : Memory
        The board's memory.

    Members
    -------
    phase : In(1)
        The second clock of a slot, in which row commands are decided.
    segments : In(stream of segment_layout(memory))
    segment : Out(segment_layout(memory)), ready : Out(1)
        The next segment; its row is open and its first column command may go out in the next slot.
    taken : In(1)
        The columns have taken it.
    active : In(1), active_bank : In
        The bank of the segment whose columns are under way.
    column : In(1), column_write : In(1)
        A column command goes to the active bank in this slot.
    command : Out(command_layout(memory))
        For the pins, a clock after it was decided.
    initialised : Out(1)

    Latency: from a segment to ``ready`` four clocks if its row is open, else the chip's times and three slots at most.
    Throughput: a refresh takes 16 clocks of the columns, the first segment after it included.
    """

    def __init__(self, memory: Memory):
        self.memory = memory
        segment = segment_layout(memory)
        super().__init__(
            {
                "phase": In(1),
                "segments": In(stream.Signature(segment)),
                "segment": Out(segment),
                "ready": Out(1),
                "taken": In(1),
                "active": In(1),
                "active_bank": In(segment["bank"].shape),
                "column": In(1),
                "column_write": In(1),
                "command": Out(command_layout(memory)),
                "initialised": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        memory, timing = self.memory, SdramTiming.of(self.memory)
        segment = self.segment

        # ---- refreshes fall due at regular times; so many intervals are the wait after power-up, too ----
        clock = Signal(range(timing.interval))
        tick, due = Signal(), Signal()
        refreshes = Signal(range(POWER_UP_REFRESHES))
        powered, last_refresh = Signal(), Signal()
        intervals = Signal(range(timing.power_up + 1))
        m.d.sync += [tick.eq(clock == timing.interval - 2), clock.eq(Mux(tick, 0, clock + 1))]
        with m.If(tick):
            m.d.sync += due.eq(1)
            with m.If(~self.initialised):
                m.d.sync += intervals.eq(intervals + 1)
        m.d.sync += [powered.eq(intervals == timing.power_up), last_refresh.eq(refreshes == POWER_UP_REFRESHES - 1)]

        # ---- slots until a bank may be precharged ----
        longest = max(timing.open, timing.read_recovery, timing.write_recovery)
        recovery = [Signal(range(longest + 1), name=f"recovery_{bank}") for bank in range(memory.banks)]
        recovered = Signal(memory.banks)
        opened = Signal()  # a clock after the row of the segment's bank
        m.d.sync += opened.eq(0)
        after_column = Mux(self.column_write, timing.write_recovery, timing.read_recovery)
        for bank, slots in enumerate(recovery):
            m.d.comb += recovered[bank].eq(slots == 0)
            with m.If(self.phase & (slots != 0)):
                m.d.sync += slots.eq(slots - 1)
            with m.If(self.column & (self.active_bank == bank) & (slots < after_column)):
                m.d.sync += slots.eq(after_column)
            with m.If(opened & (segment.bank == bank)):
                m.d.sync += slots.eq(timing.open - 1)
        # Known a clock early. Nothing can spoil it in between: a bank whose columns are under way is never among them.
        # A refresh may follow upon an opened row at once; another row of that bank comes later.
        may_close, may_close_all = Signal(), Signal()
        m.d.sync += [
            may_close.eq(recovered.bit_select(segment.bank, 1) & ~(self.active & (self.active_bank == segment.bank))),
            may_close_all.eq(recovered.all() & ~self.active & ~opened),
        ]

        # ---- the rows that are open ----
        m.submodules.rows = rows = Table(shape=segment.row.shape(), depth=memory.banks, init=[])
        lookup, note = rows.read_port(domain="comb"), rows.write_port()
        open_banks = Signal(memory.banks)
        hit, is_open = Signal(), Signal()
        with m.If(opened):
            m.d.sync += open_banks.bit_select(segment.bank, 1).eq(1)
        m.d.comb += [lookup.addr.eq(segment.bank), note.addr.eq(segment.bank), note.data.eq(segment.row)]
        m.d.sync += [
            is_open.eq(open_banks.bit_select(segment.bank, 1)),
            hit.eq(open_banks.bit_select(segment.bank, 1) & (lookup.data == segment.row)),
        ]

        # ---- commands ----
        row_wait = Signal(range(max(timing.precharge, timing.activate, timing.refresh, timing.mode)))
        column_wait = Signal(range(max(timing.column, 2)))
        full = Signal()
        slot = Signal()  # a row command may go out; a register, decided in the first clock of the slot
        command = self.command
        m.d.sync += slot.eq(~self.phase & (row_wait == 0))
        m.d.sync += [command.ras.eq(0), command.cas.eq(0), command.we.eq(0), command.bank.eq(segment.bank)]
        with m.If(self.phase):
            m.d.sync += [row_wait.eq(Mux(row_wait == 0, 0, row_wait - 1))]
            m.d.sync += [column_wait.eq(Mux(column_wait == 0, 0, column_wait - 1))]

        with m.FSM():
            with m.State("power up"), m.If(powered):
                m.next = "close all"
            with m.State("close all"):
                m.d.sync += command.address.eq(PRECHARGE_ALL)
                with m.If(slot & may_close_all):
                    m.d.sync += [command.ras.eq(1), command.we.eq(1), row_wait.eq(timing.precharge - 1)]
                    m.next = "refresh"
            with m.State("refresh"), m.If(slot):
                m.d.sync += [command.ras.eq(1), command.cas.eq(1), row_wait.eq(timing.refresh - 1)]
                m.d.sync += [due.eq(0), open_banks.eq(0), refreshes.eq(refreshes + 1)]
                with m.If(self.initialised):
                    m.next = "next"
                with m.Elif(last_refresh):
                    m.next = "mode"
            with m.State("mode"):
                mode = MODE_BURST[BURST] | timing.latency << MODE_LATENCY_SHIFT
                m.d.sync += [command.address.eq(mode), command.bank.eq(0)]
                with m.If(slot):
                    m.d.sync += [command.ras.eq(1), command.cas.eq(1), command.we.eq(1), row_wait.eq(timing.mode - 1)]
                    m.d.sync += self.initialised.eq(1)
                    m.next = "next"
            with m.State("next"):
                with m.If(full):
                    m.next = "look up"
                with m.Elif(due):
                    m.next = "close all"
                with m.Else():
                    m.d.comb += self.segments.ready.eq(1)
                    m.d.sync += [segment.eq(self.segments.payload), full.eq(self.segments.valid)]
                    with m.If(self.segments.valid):
                        m.next = "look up"
            with m.State("look up"):
                m.next = "decide"
            with m.State("decide"):
                with m.If(hit):
                    m.next = "ready"
                with m.Elif(is_open):
                    m.next = "close"
                with m.Else():
                    m.next = "open"
            with m.State("close"):
                m.d.sync += command.address.eq(0)
                with m.If(slot & may_close):
                    m.d.sync += [command.ras.eq(1), command.we.eq(1), row_wait.eq(timing.precharge - 1)]
                    m.next = "open"
            with m.State("open"):
                m.d.sync += command.address.eq(segment.row)
                with m.If(slot):
                    m.d.comb += note.en.eq(1)
                    m.d.sync += [command.ras.eq(1), row_wait.eq(timing.activate - 1), column_wait.eq(timing.column - 1)]
                    m.d.sync += opened.eq(1)
                    m.next = "ready"
            with m.State("ready"):
                m.d.comb += self.ready.eq((column_wait == 0) & ~due)
                with m.If(self.taken):
                    m.d.sync += full.eq(0)
                    m.next = "next"
                with m.Elif(due):
                    m.next = "close all"
        return m
