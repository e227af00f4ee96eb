"""The largest keys of a sequence, kept sorted while it passes."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out


def entry_layout(key_bits: int, index_bits: int) -> data.StructLayout:
    """A key and where in the sequence it was."""
    return data.StructLayout({"key": signed(key_bits), "index": unsigned(index_bits)})


class TopK(wiring.Component):
    """A chain of ``size`` places, sorted by descending key; of equal keys the earlier one comes first.

    A systolic priority queue: a key meets one place in each cycle. The place keeps the larger of the two entries and
    hands on the smaller; the last place drops it. No key reaches further than the next place.

    Latency: two cycles from a key until the first place is right, and one more for each place behind it: a reader who
    begins then, and reads a place a cycle, waits no more. Throughput: a key a cycle.

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
        Empties the chain; wins over ``valid``.
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
        layout = self.entry.shape()
        kept = [Signal(layout, name=f"kept_{place}") for place in range(self.size)]
        full = Signal(self.size)
        # What arrives at each place. What another entry has displaced belongs in front of all that follow, ties too.
        coming = [Signal(layout, name=f"coming_{place}") for place in range(self.size)]
        valid, displaced = Signal(self.size), Signal(self.size)
        m.d.sync += [
            coming[0].eq(self.entry),
            valid[0].eq(self.valid),
            self.index.eq(Array(entry.index for entry in kept)[self.place]),
        ]
        m.d.comb += self.largest.eq(kept[0].key)
        for place, (entry, new) in enumerate(zip(kept, coming, strict=True)):
            takes = Signal(name=f"takes_{place}")
            m.d.comb += takes.eq(valid[place] & (displaced[place] | ~full[place] | (new.key > entry.key)))
            with m.If(takes):
                m.d.sync += [entry.eq(new), full[place].eq(1)]
            if place + 1 < self.size:
                m.d.sync += [
                    coming[place + 1].eq(Mux(takes, entry, new)),
                    valid[place + 1].eq(valid[place] & full[place]),
                    displaced[place + 1].eq(takes),
                ]
        with m.If(self.clear):
            m.d.sync += [full.eq(0), valid.eq(0)]
        return m
