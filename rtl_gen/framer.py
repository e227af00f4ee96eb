"""Makes frames of bytes: flags, escapes and a CRC."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from moe_hw.bridge import CRC_BYTES, ESCAPE, ESCAPE_XOR, FLAG

CONTENT = data.StructLayout({"byte": 8, "last": 1})
"""A byte of a frame's content, and whether it is the last one."""


class Framer(wiring.Component):
    """The sending side of ``docs/bridge.md``'s frames.

    Members
    -------
    content : In(stream of CONTENT), line : Out(stream of 8 bits)

    Latency: none; throughput: a byte of the line a cycle.
    """

    def __init__(self) -> None:
        super().__init__({"content": In(stream.Signature(CONTENT)), "line": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.crc = crc = CRC32_ISO_HDLC().create()
        content, line = self.content, self.line
        flag = Signal()
        byte = Signal(8)
        special = (byte == FLAG) | (byte == ESCAPE)
        escaped = Signal()
        sent = Signal()  # the byte itself, behind its escape if it has one
        taken = ~flag & line.valid & line.ready
        m.d.comb += [
            line.payload.eq(Mux(flag, FLAG, Mux(escaped, byte ^ ESCAPE_XOR, Mux(special, ESCAPE, byte)))),
            sent.eq(taken & (escaped | ~special)),
            crc.data.eq(content.payload.byte),
        ]
        with m.If(taken):
            m.d.sync += escaped.eq(special & ~escaped)

        number = Signal(range(CRC_BYTES))
        with m.FSM():
            with m.State("open"):
                m.d.comb += [flag.eq(1), line.valid.eq(content.valid), crc.start.eq(1)]
                with m.If(content.valid & line.ready):
                    m.next = "content"
            with m.State("content"):
                m.d.comb += [byte.eq(content.payload.byte), line.valid.eq(content.valid)]
                m.d.comb += [content.ready.eq(sent), crc.valid.eq(sent)]
                with m.If(sent & content.payload.last):
                    m.next = "crc"
            with m.State("crc"):
                m.d.comb += [byte.eq(crc.crc.word_select(number, 8)), line.valid.eq(1)]
                with m.If(sent):
                    m.d.sync += number.eq(number + 1)
                    with m.If(number == CRC_BYTES - 1):
                        m.next = "close"
            with m.State("close"):
                m.d.comb += [flag.eq(1), line.valid.eq(1)]
                with m.If(line.ready):
                    m.next = "open"
        return m
