"""Finds frames in the bytes of a line, takes their escapes out and checks their CRC."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from moe_hw.bridge import ESCAPE, ESCAPE_XOR, FLAG


class Deframer(wiring.Component):
    """The receiving side of ``docs/bridge.md``'s frames.

    Members
    -------
    valid : In(1), data : In(8)
        The line.
    o_valid : Out(1), o_data : Out(8)
        A byte of a frame, its CRC included.
    end : Out(1), good : Out(1)
        The frame has ended; its CRC is right. Not at the same time as ``o_valid``; never for a frame without bytes.

    Latency: one cycle; throughput: a byte a cycle.
    """

    def __init__(self) -> None:
        super().__init__(
            {"valid": In(1), "data": In(8), "o_valid": Out(1), "o_data": Out(8), "end": Out(1), "good": Out(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.crc = crc = CRC32_ISO_HDLC().create()
        begun, escaped = Signal(), Signal()
        m.d.comb += crc.data.eq(Mux(escaped, self.data ^ ESCAPE_XOR, self.data))
        m.d.sync += [self.o_valid.eq(0), self.end.eq(0), self.o_data.eq(crc.data)]
        with m.If(self.valid):
            with m.If(self.data == FLAG):
                m.d.comb += crc.start.eq(1)
                m.d.sync += [
                    self.end.eq(begun),
                    self.good.eq(crc.match_detected & ~escaped),
                    begun.eq(0),
                    escaped.eq(0),
                ]
            with m.Else():
                m.d.sync += begun.eq(1)
                with m.If((self.data == ESCAPE) & ~escaped):
                    m.d.sync += escaped.eq(1)
                with m.Else():
                    m.d.comb += crc.valid.eq(1)
                    m.d.sync += [self.o_valid.eq(1), escaped.eq(0)]
        return m
