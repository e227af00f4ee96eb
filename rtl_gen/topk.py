"""The largest keys of a sequence, kept sorted while it passes."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out


def entry_layout(key_bits: int, index_bits: int) -> data.StructLayout:
    """A key and where in the sequence it was."""
    return data.StructLayout({"key": signed(key_bits), "index": unsigned(index_bits)})


class TopK(wiring.Component):
    """A chain of ``size`` places, sorted by descending key; of equal keys the earlier one comes first.

    A key is inserted at its place while the smaller ones move back by one; the last one drops out. The chain is read
    from its front: ``pop`` removes the largest and moves the others forward.

    Latency: one cycle; throughput: a key or an entry a cycle.

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
        Insert ``entry``; wins over ``pop``.
    entry : In(entry_layout)
        Key and index. Indices ascend, so that ties go to the lower one.
    pop : In(1)
        Remove ``front``.
    front : Out(entry_layout)
        The largest entry; meaningless if the chain is empty.
    """

    def __init__(self, size: int, key_bits: int, index_bits: int):
        self.size = size
        self.key_bits = key_bits
        self.index_bits = index_bits
        layout = entry_layout(key_bits, index_bits)
        super().__init__({"clear": In(1), "valid": In(1), "entry": In(layout), "pop": In(1), "front": Out(layout)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layout = self.entry.shape()
        entries = [Signal(layout, name=f"entry_{place}") for place in range(self.size)]
        full = Signal(self.size)
        m.d.comb += self.front.eq(entries[0])

        # Places that the new entry goes in front of: in a sorted chain, all from its own place on.
        behind = Signal(self.size)
        for place, entry in enumerate(entries):
            m.d.comb += behind[place].eq(~full[place] | (self.entry.key > entry.key))

        with m.If(self.valid):
            for place, entry in enumerate(entries):
                before = entries[place - 1] if place else self.entry
                follows = behind[place - 1] if place else 0
                with m.If(behind[place]):
                    m.d.sync += entry.eq(Mux(follows, before, self.entry))
            m.d.sync += full.eq((full << 1) | 1)
        with m.Elif(self.pop):
            for place, after in enumerate(entries[1:]):
                m.d.sync += entries[place].eq(after)
            m.d.sync += full.eq(full >> 1)
        with m.If(self.clear):
            m.d.sync += full.eq(0)
        return m
