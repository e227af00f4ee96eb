"""A register slice in the data channel of half an AXI4 bus."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from rtl_gen.skid_buffer import SkidBuffer


class AxiSlice(wiring.Component):
    """Registers the data of reads or of writes in both directions; addresses and answers pass as they are.

    The memory is far away from most of those that read and write, so their words stop half-way.

    Parameters
    ----------
    half : AXI4Read or AXI4Write
        The signature of that half.

    Members
    -------
    master : In(half), slave : Out(half)
        From the block that asks, to the memory.

    Latency: one cycle; throughput: a word a cycle.
    """

    def __init__(self, half: wiring.Signature):
        super().__init__({"master": In(half), "slave": Out(half)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        members = self.slave.signature.members
        reads = "rdata" in members
        channel = "r" if reads else "w"
        source, sink = (self.slave, self.master) if reads else (self.master, self.slave)
        payload = {}
        for name, member in members.items():
            if name in (f"{channel}valid", f"{channel}ready"):
                continue
            if name.startswith(channel):
                payload[name] = member.shape
                continue
            ends = (self.slave, self.master) if member.flow is Out else (self.master, self.slave)
            m.d.comb += getattr(ends[0], name).eq(getattr(ends[1], name))
        m.submodules.words = words = SkidBuffer(data.StructLayout(payload))
        for name in payload:
            m.d.comb += [
                words.i.payload[name].eq(getattr(source, name)),
                getattr(sink, name).eq(words.o.payload[name]),
            ]
        m.d.comb += [
            words.i.valid.eq(getattr(source, f"{channel}valid")),
            getattr(source, f"{channel}ready").eq(words.i.ready),
            getattr(sink, f"{channel}valid").eq(words.o.valid),
            words.o.ready.eq(getattr(sink, f"{channel}ready")),
        ]
        return m
