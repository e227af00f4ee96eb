"""A stream from one clock to another, for clocks that are fast for the FPGA."""

from __future__ import annotations

from amaranth.hdl import DomainRenamer, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from rtl_gen.skid_buffer import SkidBuffer


class Crossing(wiring.Component):
    """A queue that is filled in one clock domain and emptied in another.

    The queue of C. Cummings, "Simulation and Synthesis Techniques for Asynchronous FIFO Design" (SNUG 2002), section
    5, as Amaranth's ``AsyncFIFO`` is; but that one reads the memory at the place after next, which is known late in a
    cycle. This one reads it at the next place, a register, into a skid buffer. It has no reset of its own either: both
    domains are reset together, for at least four clocks of the slower one.

    Parameters
    ----------
    shape : ShapeLike
        Shape of the payload.
    depth : int
        Places, a power of two, at least 4. Eight keep up with any two clocks; fewer do for what is rare.
    i_domain, o_domain : str
        The domains of ``i`` and of ``o``.

    Members
    -------
    i : In(stream of shape), o : Out(stream of shape)
        ``o`` depends on registers alone, ``i.ready`` on two pointers.

    Latency: a cycle of ``i``, three or four of ``o``; throughput: one a cycle of the slower clock.
    """

    def __init__(self, shape: object, depth: int, i_domain: str, o_domain: str):
        self.depth = depth
        self.i_domain = i_domain
        self.o_domain = o_domain
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        i_domain, o_domain = m.d[self.i_domain], m.d[self.o_domain]
        bits = exact_log2(self.depth) + 1
        # Each pointer in binary, and in Gray code for the other side, of which one bit at a time changes.
        written, written_gray, written_there = (Signal(bits) for _ in range(3))
        taken, taken_gray, taken_there = (Signal(bits) for _ in range(3))
        m.submodules.written = FFSynchronizer(written_gray, written_there, o_domain=self.o_domain)
        m.submodules.taken = FFSynchronizer(taken_gray, taken_there, o_domain=self.i_domain)
        m.submodules.out = out = DomainRenamer(self.o_domain)(SkidBuffer(self.o.payload.shape()))
        wiring.connect(m, out.o, wiring.flipped(self.o))

        m.submodules.memory = memory = Memory(shape=self.i.payload.shape(), depth=self.depth, init=[])
        write = memory.write_port(domain=self.i_domain)
        read = memory.read_port(domain="comb")
        written_next, taken_next = (written + 1)[:bits], (taken + 1)[:bits]
        is_full = written_gray == taken_there ^ (0b11 << bits - 2)
        m.d.comb += [
            self.i.ready.eq(~is_full),
            write.en.eq(self.i.valid & ~is_full),
            write.addr.eq(written),
            write.data.eq(self.i.payload),
            read.addr.eq(taken),
            out.i.payload.eq(read.data),
            out.i.valid.eq(taken_gray != written_there),
        ]
        with m.If(write.en):
            i_domain += [written.eq(written_next), written_gray.eq(_gray(written_next))]
        with m.If(out.i.valid & out.i.ready):
            o_domain += [taken.eq(taken_next), taken_gray.eq(_gray(taken_next))]
        return m


def _gray(pointer: Value) -> Value:
    return pointer ^ (pointer >> 1)
