"""A proof that the read arbiter issues each burst once, in order, and hands its words to the reader that asked."""

from __future__ import annotations

import pytest
from amaranth.hdl import Assert, Assume, Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from moe_hw.arch import Arch
from rtl_gen.bus import burst_layout
from rtl_gen.read_arbiter import ReadArbiter
from sim.formal import prove

ARCH = Arch(columns=4)
READERS = 2
OUTSTANDING = 2
COUNT_BITS = 4


class ReadArbiterSpecification(wiring.Component):
    """Watches one burst, any of them by its number among the accepted ones; readers and memory are free.

    Parameters:
        newest_first: claim that words belong to the newest burst instead of the oldest.
    """

    def __init__(self, newest_first: bool = False):
        self.newest_first = newest_first
        members = {f"valid_{reader}": In(1) for reader in range(READERS)}
        members.update({f"burst_{reader}": In(burst_layout(ARCH)) for reader in range(READERS)})
        members.update({f"ready_{reader}": In(1) for reader in range(READERS)})
        members.update({"arready": In(1), "rvalid": In(1), "rlast": In(1), "rresp": In(2), "rdata": In(ARCH.data_bits)})
        super().__init__({**members, "watched": In(COUNT_BITS)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.arbiter = arbiter = ReadArbiter(ARCH, READERS, OUTSTANDING)
        bursts = [getattr(arbiter, f"bursts_{reader}") for reader in range(READERS)]
        words = [getattr(arbiter, f"words_{reader}") for reader in range(READERS)]
        for reader in range(READERS):
            m.d.comb += [
                bursts[reader].valid.eq(getattr(self, f"valid_{reader}")),
                bursts[reader].payload.eq(getattr(self, f"burst_{reader}")),
                words[reader].ready.eq(getattr(self, f"ready_{reader}")),
            ]
        for name in ("arready", "rvalid", "rlast", "rresp", "rdata"):
            m.d.comb += getattr(arbiter, name).eq(getattr(self, name))

        started = Signal()
        watched = Signal(COUNT_BITS)
        m.d.sync += [started.eq(1), watched.eq(self.watched)]
        with m.If(started):
            m.d.comb += Assume(watched == self.watched)

        # Bursts are numbered as they are accepted, issued and answered to the end.
        accepted, issued, answered = (Signal(COUNT_BITS, name=name) for name in ("accepted", "issued", "answered"))
        accept = Cat(burst.valid & burst.ready for burst in bursts)
        issue = arbiter.arvalid & arbiter.arready
        word = arbiter.rvalid & arbiter.rready
        m.d.sync += [
            accepted.eq(accepted + accept.any()),
            issued.eq(issued + issue),
            answered.eq(answered + (word & arbiter.rlast)),
        ]
        m.d.comb += [
            Assume(~arbiter.rvalid | (answered != issued)),
            Assert((accept & (accept - 1)) == 0),
            Assert(arbiter.arvalid == (accepted != issued)),
            Assert(arbiter.idle == (accepted == answered)),
            Assert(accepted - answered <= OUTSTANDING + 1),
        ]
        for reader in range(READERS):
            m.d.comb += Assert(~bursts[reader].ready | bursts[reader].valid)

        # The watched burst.
        owner = Signal(range(READERS))
        burst = Signal(burst_layout(ARCH))
        known = Signal()
        for reader in range(READERS):
            with m.If(accept[reader] & (accepted == self.watched)):
                m.d.sync += [owner.eq(reader), burst.eq(bursts[reader].payload), known.eq(1)]
        with m.If(known & arbiter.arvalid & (issued == self.watched)):
            m.d.comb += Assert((arbiter.araddr == burst.address) & (arbiter.arlen == burst.length))

        # A word moves on both sides or on neither, unchanged; the watched burst's go to its owner.
        taken = Cat(stream.valid & stream.ready for stream in words)
        m.d.comb += [Assert((taken & (taken - 1)) == 0), Assert(word == taken.any())]
        answers = issued - 1 if self.newest_first else answered
        for reader in range(READERS):
            with m.If(words[reader].valid):
                m.d.comb += [
                    Assert(arbiter.rvalid),
                    Assert(words[reader].payload.data == arbiter.rdata),
                    Assert(words[reader].payload.error == (arbiter.rresp != 0)),
                ]
                with m.If(known & (answers == self.watched)):
                    m.d.comb += Assert(owner == reader)

        # A request holds until it is taken.
        held = Signal()
        address, length = Signal.like(arbiter.araddr), Signal.like(arbiter.arlen)
        m.d.sync += [held.eq(arbiter.arvalid & ~arbiter.arready), address.eq(arbiter.araddr), length.eq(arbiter.arlen)]
        with m.If(held):
            m.d.comb += Assert(arbiter.arvalid & (arbiter.araddr == address) & (arbiter.arlen == length))
        return m


def test_bursts_and_words_keep_order() -> None:
    prove(ReadArbiterSpecification(), depth=12)


def test_the_proof_can_fail() -> None:
    with pytest.raises(AssertionError, match="Assert failed"):
        prove(ReadArbiterSpecification(newest_first=True), depth=8)
