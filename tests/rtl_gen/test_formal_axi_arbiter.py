"""A proof that the arbiter passes each burst on once and in order, hands answers to their owner, and is fair."""

from __future__ import annotations

import pytest
from amaranth.hdl import Assert, Assume, Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from moe_hw.arch import Arch
from rtl_gen.axi_arbiter import REQUEST, AxiArbiter
from sim.formal import prove

ARCH = Arch(columns=4)
COUNT_BITS = 4
MASTERS = 2


class AxiArbiterSpecification(wiring.Component):
    """Watches one burst of each direction, any of them by its number among the accepted ones; all else is free.

    Parameters:
        newest_first: claim that answers belong to the newest burst instead of the oldest.
        impatient: claim that a master never waits for the other.
    """

    def __init__(self, newest_first: bool = False, impatient: bool = False):
        self.newest_first = newest_first
        self.impatient = impatient
        self.arbiter = AxiArbiter(ARCH)
        self.inputs: dict[str, wiring.Member] = {}
        for path, member, _ in self.arbiter.signature.flatten(self.arbiter):
            if member.flow is wiring.In:
                self.inputs["__".join(map(str, path))] = In(member.shape)
        super().__init__({**self.inputs, "watched": In(COUNT_BITS)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.arbiter = arbiter = self.arbiter
        for name in self.inputs:
            port, signal = name.split("__")
            m.d.comb += getattr(getattr(arbiter, port), signal).eq(getattr(self, name))
        started = Signal()
        watched = Signal(COUNT_BITS)
        m.d.sync += [started.eq(1), watched.eq(self.watched)]
        with m.If(started):
            m.d.comb += Assume(watched == self.watched)
        masters = (arbiter.master_0, arbiter.master_1)
        self._direction(m, "ar", masters, arbiter.slave, [("r", "rlast", ("rdata", "rresp"), True)])
        answers = [("w", "wlast", ("wdata", "wstrb", "wlast"), False), ("b", None, ("bresp",), True)]
        self._direction(m, "aw", masters, arbiter.slave, answers)
        return m

    def _direction(self, m: Module, channel: str, masters, slave, followers) -> None:
        def get(port, name: str):
            return getattr(port, f"{channel}{name}")

        # Bursts are numbered as they are accepted and issued.
        accepted, issued = (Signal(COUNT_BITS, name=f"{channel}_{name}") for name in ("accepted", "issued"))
        accept = Cat(get(master, "valid") & get(master, "ready") for master in masters)
        m.d.sync += [
            accepted.eq(accepted + accept.any()),
            issued.eq(issued + (get(slave, "valid") & get(slave, "ready"))),
        ]
        m.d.comb += [Assert(~accept.all()), Assert(get(slave, "valid") == (accepted != issued))]
        owner, known = Signal(name=f"{channel}_owner"), Signal(name=f"{channel}_known")
        request = [Signal.like(get(slave, name), name=f"{channel}_{name}") for name in REQUEST]
        for number, master in enumerate(masters):
            m.d.comb += Assert(~get(master, "ready") | get(master, "valid"))
            with m.If(accept[number] & (accepted == self.watched)):
                m.d.sync += [owner.eq(number), known.eq(1)]
                m.d.sync += [kept.eq(get(master, name)) for kept, name in zip(request, REQUEST, strict=True)]
            # Whoever asks waits for at most one burst of the other.
            waiting = Signal(name=f"{channel}_waiting_{number}")
            passed = Signal(name=f"{channel}_passed_{number}")
            asks = get(master, "valid") & ~accept[number]
            m.d.sync += [waiting.eq(asks), passed.eq(asks & (passed | accept[1 - number]))]
            with m.If(waiting):
                m.d.comb += Assume(get(master, "valid"))
            m.d.comb += Assert(~(accept[1 - number] & get(master, "valid") & (passed | self.impatient)))
        with m.If(known & get(slave, "valid") & (issued == self.watched)):
            m.d.comb += [Assert(get(slave, name) == kept) for kept, name in zip(request, REQUEST, strict=True)]

        # Words and answers: they move on both sides or on neither, unchanged; the watched burst's at its owner's.
        for prefix, last, fields, from_slave in followers:
            valid, ready = f"{prefix}valid", f"{prefix}ready"
            move = getattr(slave, valid) & getattr(slave, ready)
            done = Signal(COUNT_BITS, name=f"{prefix}_done")
            m.d.sync += done.eq(done + (move & (getattr(slave, last) if last else 1)))
            after_request = ~getattr(slave, valid) | (done != issued)
            m.d.comb += Assume(after_request) if from_slave else Assert(after_request)
            moves = Cat(getattr(master, valid) & getattr(master, ready) for master in masters)
            m.d.comb += [Assert(~moves.all()), Assert(moves.any() == move)]
            turn = accepted - 1 if self.newest_first else done
            for number, master in enumerate(masters):
                with m.If(moves[number]):
                    m.d.comb += [Assert(getattr(master, field) == getattr(slave, field)) for field in fields]
                    with m.If(known & (turn == self.watched)):
                        m.d.comb += Assert(owner == number)


def test_bursts_words_and_answers_keep_order_and_nobody_starves() -> None:
    prove(AxiArbiterSpecification(), depth=7)


@pytest.mark.parametrize("claim", ["newest_first", "impatient"])
def test_the_proof_can_fail(claim: str) -> None:
    with pytest.raises(AssertionError, match="Assert failed"):
        prove(AxiArbiterSpecification(**{claim: True}), depth=7)
