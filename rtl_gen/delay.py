"""A long delay line in a memory, for what must arrive together with the array's sums."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2


class Delay(wiring.Component):
    """Delays a payload and its valid bit.

    Parameters
    ----------
    shape : ShapeLike
        Shape of the payload.
    cycles : int
        Delay, at least 3.

    Members
    -------
    i_valid, i : In
        Payload of this cycle.
    o_valid, o : Out
        The same, ``cycles`` later.

    Latency: ``cycles``; throughput: one a cycle.
    """

    def __init__(self, shape: object, cycles: int):
        if cycles < 3:
            raise ValueError(f"cycles: expected at least 3, got {cycles}")
        self.shape = shape
        self.cycles = cycles
        super().__init__({"i_valid": In(1), "i": In(shape), "o_valid": Out(1), "o": Out(shape)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Only the valid bits are reset, so only they need flip-flops.
        valid = Signal(self.cycles)
        m.d.sync += valid.eq(Cat(self.i_valid, valid[:-1]))
        m.d.comb += self.o_valid.eq(valid[-1])

        depth = 1 << ceil_log2(self.cycles)
        m.submodules.memory = memory = Memory(shape=self.shape, depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        now = Signal(range(depth))
        m.d.sync += now.eq(now + 1)
        m.d.comb += [
            write.en.eq(1),
            write.addr.eq(now),
            write.data.eq(self.i),
            read.addr.eq(now - (self.cycles - 1)),
            self.o.eq(read.data),
        ]
        return m
