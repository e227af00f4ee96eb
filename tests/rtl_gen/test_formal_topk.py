"""A proof that the chain keeps the largest keys in order, for every sequence of a bounded length."""

from __future__ import annotations

import pytest
from amaranth.hdl import Assert, Assume, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from rtl_gen.topk import LATENCY, TopK
from sim.formal import prove

KEY_BITS = 2
INDEX_BITS = 3


class TopKSpecification(wiring.Component):
    """Watches one entry, any of them: as many entries come out before it as beat it.

    After a reset the chain is cleared. Keys are inserted with ascending indices, then the chain is read from its first
    place on, a place a cycle.

    Parameters:
        size: of the chain.
        later_first: claim the wrong order of equal keys.
    """

    def __init__(self, size: int, later_first: bool = False):
        self.size = size
        self.later_first = later_first
        super().__init__(
            {
                "clear": In(1),
                "insert": In(1),
                "key": In(signed(KEY_BITS)),
                "read": In(1),
                "watched": In(INDEX_BITS),
                "watched_key": In(signed(KEY_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.topk = topk = TopK(self.size, KEY_BITS, INDEX_BITS)
        index = Signal(INDEX_BITS)
        place = Signal(range(self.size + 1))  # that is read
        is_read = Signal()
        place_read = Signal.like(place)
        cleared = Signal()
        right = Signal(LATENCY - 1)  # the first place, after the last key
        m.d.comb += [
            topk.clear.eq(self.clear),
            topk.valid.eq(self.insert),
            topk.entry.key.eq(self.key),
            topk.entry.index.eq(index),
            topk.place.eq(place),
            Assume(~(self.insert & ~cleared)),
            Assume(~(self.insert & (self.read | (place != 0)))),
            Assume(~(self.insert & (index == (1 << INDEX_BITS) - 1))),
            Assume(~(self.read & (~right.all() | (place == self.size)))),
        ]

        started = Signal()
        watched = Signal(INDEX_BITS)
        watched_key = Signal(signed(KEY_BITS))
        m.d.sync += [started.eq(1), watched.eq(self.watched), watched_key.eq(self.watched_key)]
        with m.If(started):
            m.d.comb += Assume((watched == self.watched) & (watched_key == self.watched_key))

        seen = Signal()
        beaten_by = Signal(INDEX_BITS + 1)
        is_watched = index == self.watched
        ties_beat = (index > self.watched) if self.later_first else (index < self.watched)
        beats = Mux(ties_beat, self.key >= self.watched_key, self.key > self.watched_key)
        with m.If(self.insert):
            m.d.comb += Assume(~is_watched | (self.key == self.watched_key))
            m.d.sync += [
                index.eq(index + 1),
                seen.eq(seen | is_watched),
                beaten_by.eq(beaten_by + (beats & ~is_watched)),
            ]
        m.d.sync += [right.eq(Mux(self.insert, 0, right << 1 | 1)), is_read.eq(self.read), place_read.eq(place)]
        with m.If(self.read):
            m.d.sync += place.eq(place + 1)
        with m.If(self.clear):
            m.d.sync += [cleared.eq(1), index.eq(0), place.eq(0), seen.eq(0), beaten_by.eq(0), is_read.eq(0)]

        with m.If(is_read & seen & (beaten_by == place_read)):
            m.d.comb += Assert(topk.index == self.watched)
            with m.If(place_read == 0):
                m.d.comb += Assert(topk.largest == self.watched_key)
        return m


@pytest.mark.parametrize("size", [1, 3])
def test_entries_come_out_in_order(size: int) -> None:
    prove(TopKSpecification(size), depth=13)


def test_the_proof_can_fail() -> None:
    with pytest.raises(AssertionError, match="Assert failed"):
        prove(TopKSpecification(3, later_first=True), depth=11)
