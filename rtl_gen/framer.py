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

    Latency: none to the flag; throughput: a byte of the line in two cycles at least.
    """

    def __init__(self) -> None:
        super().__init__({"content": In(stream.Signature(CONTENT)), "line": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.crc = crc = CRC32_ISO_HDLC().create()
        content, line = self.content, self.line
        flag = Signal()
        kept = Signal(CONTENT)  # the memory that contents come from is slow
        byte = Signal(8)
        special = (byte == FLAG) | (byte == ESCAPE)
        escaped = Signal()
        sent = Signal()  # the byte itself, behind its escape if it has one
        taken = ~flag & line.valid & line.ready
        m.d.comb += [
            line.payload.eq(Mux(flag, FLAG, Mux(escaped, byte ^ ESCAPE_XOR, Mux(special, ESCAPE, byte)))),
            sent.eq(taken & (escaped | ~special)),
            crc.data.eq(kept.byte),
        ]
        with m.If(taken):
            m.d.sync += escaped.eq(special & ~escaped)

        number = Signal(range(CRC_BYTES))
        with m.FSM():
            with m.State("open"):
                m.d.comb += [flag.eq(1), line.valid.eq(content.valid), crc.start.eq(1)]
                with m.If(content.valid & line.ready):
                    m.next = "next"
            with m.State("next"):
                m.d.comb += content.ready.eq(1)
                m.d.sync += kept.eq(content.payload)
                with m.If(content.valid):
                    m.next = "byte"
            with m.State("byte"):
                m.d.comb += [byte.eq(kept.byte), line.valid.eq(1), crc.valid.eq(sent)]
                with m.If(sent):
                    m.next = "next"
                    with m.If(kept.last):
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
