"""The largest keys of a sequence, kept sorted while it passes."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

LATENCY = 4
"""Cycles from a key until the index of the first place is right."""


def entry_layout(key_bits: int, index_bits: int) -> data.StructLayout:
    """A key and where in the sequence it was."""
    return data.StructLayout({"key": signed(key_bits), "index": unsigned(index_bits)})


class TopK(wiring.Component):
    """A chain of ``size`` places, sorted by descending key; of equal keys the earlier one comes first.

    A systolic priority queue: a key meets one place in each cycle. The place keeps the larger of the two entries and
    hands on the smaller; the last place drops it. No key reaches further than the next place.

    Keys pass in two halves, the lower one a cycle behind, and the index one more: the upper halves are sorted by
    themselves, and say to the lower ones in the next cycle which is larger, or that it is for them to decide. So no
    cycle compares whole keys, and no comparison reaches further than its half.

    Latency: ``LATENCY`` cycles from a key until the first place is right, and one more for each place behind it: a
    reader who begins then, and reads a place a cycle, waits no more. Throughput: a key a cycle.

    Parameters
    ----------
    size : int
        Entries that are kept.
    key_bits : int
        Width of the signed keys.
    index_bits : int
        Width of the index that travels with a key.

    Members
    -------
    clear : In(1)
        Empties the chain; wins over ``valid``. Needed after a reset.
    valid : In(1)
        Insert ``entry``.
    entry : In(entry_layout)
        Key and index. Indices ascend, so that ties go to the lower one.
    largest : Out(signed(key_bits))
        The key of the first place; meaningless if the chain is empty, as is the index of an empty place.
    place : In(range(size)), index : Out(index_bits)
        A place and, a cycle later, its index.
    """

    def __init__(self, size: int, key_bits: int, index_bits: int):
        self.size = size
        self.key_bits = key_bits
        self.index_bits = index_bits
        super().__init__(
            {
                "clear": In(1),
                "valid": In(1),
                "entry": In(entry_layout(key_bits, index_bits)),
                "largest": Out(signed(key_bits)),
                "place": In(range(size)),
                "index": Out(index_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        split = self.key_bits // 2

        # ---- upper halves: what arrives at a place, and what is kept there ----
        upper = signed(self.key_bits - split)
        kept = [Signal(upper, name=f"kept_{place}") for place in range(self.size)]
        coming = [Signal(upper, name=f"coming_{place}") for place in range(self.size)]
        # `clear` is all the reset that these need: the real one would be an input of logic, from far.
        full, valid = Signal(self.size, reset_less=True), Signal(self.size, reset_less=True)
        m.d.sync += [coming[0].eq(self.entry.key[split:].as_signed()), valid[0].eq(self.valid)]
        larger, equal = Signal(self.size), Signal(self.size)  # of the upper half that came a cycle ago
        for place in range(self.size):
            takes = Signal(name=f"takes_{place}")
            m.d.comb += takes.eq(valid[place] & (~full[place] | (coming[place] > kept[place])))
            m.d.sync += [
                larger[place].eq(takes),
                equal[place].eq(valid[place] & full[place] & (coming[place] == kept[place])),
            ]
            with m.If(takes):
                m.d.sync += [kept[place].eq(coming[place]), full[place].eq(1)]
            if place + 1 < self.size:
                m.d.sync += [
                    coming[place + 1].eq(Mux(takes, kept[place], coming[place])),
                    valid[place + 1].eq(valid[place] & full[place]),
                ]
        with m.If(self.clear):
            m.d.sync += [full.eq(0), valid.eq(0)]

        # ---- lower halves, a cycle later; what another entry has displaced wins ties, too ----
        kept_lower = [Signal(split, name=f"kept_lower_{place}") for place in range(self.size)]
        coming_lower = [Signal(split, name=f"coming_lower_{place}") for place in range(self.size)]
        took = Signal(self.size)
        displaced = Cat(0, took)
        for place, (entry, new) in enumerate(zip(kept_lower, coming_lower, strict=True)):
            takes = Signal(name=f"takes_lower_{place}")
            m.d.comb += takes.eq(larger[place] | (equal[place] & (displaced[place] | (new > entry))))
            m.d.sync += took[place].eq(takes)
            with m.If(takes):
                m.d.sync += entry.eq(new)
            if place + 1 < self.size:
                m.d.sync += coming_lower[place + 1].eq(Mux(takes, entry, new))

        # ---- indices, another cycle later ----
        kept_index = [Signal(self.index_bits, name=f"kept_index_{place}") for place in range(self.size)]
        coming_index = [Signal(self.index_bits, name=f"coming_index_{place}") for place in range(self.size)]
        for place, (entry, new) in enumerate(zip(kept_index, coming_index, strict=True)):
            with m.If(took[place]):
                m.d.sync += entry.eq(new)
            if place + 1 < self.size:
                m.d.sync += coming_index[place + 1].eq(Mux(took[place], entry, new))

        lower, index = Signal(split), Signal(self.index_bits)
        index_later = Signal.like(index)
        m.d.sync += [
            lower.eq(self.entry.key[:split]),
            coming_lower[0].eq(lower),
            index.eq(self.entry.index),
            index_later.eq(index),
            coming_index[0].eq(index_later),
            self.index.eq(Array(kept_index)[self.place]),
        ]
        m.d.comb += self.largest.eq(Cat(kept_lower[0], kept[0]).as_signed())
        return m
