"""The logits of a job: stored as they come from the array, read token by token."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moe_hw.arch import ACC_BITS, EXP_BITS, Arch
from rtl_gen.arith import Pipeline
from rtl_gen.types import count_bits, result_layout, slot_bits, token_bits

SCAN_LATENCY = 6
"""Cycles from ``start`` to the first row."""


class LogitMemory(wiring.Component):
    """Stores the result words of a job, then reads a slot's logits one after another.

    Latency: ``SCAN_LATENCY``; throughput: a result word or a logit a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    results : In(stream of result_layout)
        A word a cycle, in any order, until the last slot's, marked ``last``; no more until ``release``.
    groups, tokens : In
        Result words of a token; tokens of the batch.
    full : Out(1)
        The job is stored and can be scanned.
    release : In(1)
        Forget the job.
    first_token, last_slot, last_job : Out
        Of the job that is stored: the token in slot 0, its last slot, and whether it has the batch's last token.
    slot : In
        The slot that is scanned; held from its ``start`` until ``o_last``.
    base_exponent : Out
        That of ``slot``, one cycle later.
    start, first, rows : In
        Scan rows ``first`` to ``rows`` - 1, or one row alone if there is another ``start`` in the next cycle. ``rows``
        counts from the cycle after ``start`` and is held until ``o_last``.
    o_valid, o_last, o_row, o_logit : Out
        The rows in order, one a cycle, the first ``SCAN_LATENCY`` cycles after ``start``.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        rows_max = arch.max_experts + 1
        super().__init__(
            {
                "results": In(stream.Signature(result_layout(arch))),
                "groups": In(range(-(-rows_max // arch.columns) + 1)),
                "full": Out(1),
                "release": In(1),
                "tokens": In(count_bits(arch)),
                "first_token": Out(token_bits(arch)),
                "last_slot": Out(slot_bits(arch)),
                "last_job": Out(1),
                "slot": In(slot_bits(arch)),
                "base_exponent": Out(signed(EXP_BITS)),
                "start": In(1),
                "first": In(range(rows_max)),
                "rows": In(range(rows_max + 1)),
                "o_valid": Out(1),
                "o_last": Out(1),
                "o_row": Out(range(rows_max)),
                "o_logit": Out(signed(ACC_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        word = data.ArrayLayout(signed(ACC_BITS), arch.columns)
        m.submodules.logits = logits = Memory(shape=word, depth=arch.logit_words, init=[])
        m.submodules.bases = bases = Memory(shape=signed(EXP_BITS), depth=arch.slots, init=[])
        logit_write, logit_read = logits.write_port(), logits.read_port()
        base_write, base_read = bases.write_port(), bases.read_port()

        accepting = Signal(init=1)
        accept = self.results.valid & accepting
        result = self.results.payload
        m.d.comb += self.results.ready.eq(accepting)
        p = Pipeline(m, valid=accept)
        p.stage(
            acc=result.acc.as_value(),
            slot=result.slot,
            group=result.group,
            first=result.slot * self.groups,
            base=result.base_exponent,
            last=result.last,
        )
        p.stage(first=None, group=None, address=p.first + p.group)
        m.d.comb += [
            logit_write.en.eq(p.valid),
            logit_write.addr.eq(p.address),
            logit_write.data.as_value().eq(p.acc),
            base_write.en.eq(p.valid),
            base_write.addr.eq(p.slot),
            base_write.data.eq(p.base),
        ]
        with m.If(accept & result.last):
            m.d.sync += [
                accepting.eq(0),
                self.first_token.eq(result.of.token - result.slot),
                self.last_slot.eq(result.slot),
                self.last_job.eq(result.of.token == self.tokens - 1),
            ]
        with m.If(p.valid & p.last):
            m.d.sync += self.full.eq(1)
        with m.If(self.release):
            m.d.sync += [accepting.eq(1), self.full.eq(0)]

        m.d.comb += [base_read.addr.eq(self.slot), self.base_exponent.eq(base_read.data)]
        base = Signal(range(arch.logit_words))
        m.d.sync += base.eq(self.slot * self.groups)
        column_bits = exact_log2(arch.columns)
        scanning = Signal()
        row = Signal.like(self.o_row)
        # Registers: what starts a scan depends on much.
        start, first, rows = Signal(), Signal.like(self.first), Signal.like(self.rows)
        m.d.sync += [start.eq(self.start), first.eq(self.first), rows.eq(self.rows)]
        last = row == rows - 1
        with m.If(start):
            m.d.sync += [scanning.eq(1), row.eq(first)]
        with m.Elif(scanning):
            m.d.sync += [scanning.eq(~last), row.eq(row + 1)]
        p = Pipeline(m, valid=scanning)
        p.stage(row=row, last=last, address=base + (row >> column_bits))
        m.d.comb += logit_read.addr.eq(p.address)
        p.stage(address=None)
        p.stage(word=logit_read.data.as_value())
        p.stage(word=None, logit=p.word.word_select(p.row[:column_bits], ACC_BITS))
        m.d.comb += [
            self.o_valid.eq(p.valid),
            self.o_last.eq(p.last),
            self.o_row.eq(p.row),
            self.o_logit.eq(p.logit),
        ]
        return m
