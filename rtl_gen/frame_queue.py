"""Keeps frames that wait to be done; a bad one leaves nothing but its mark."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moe_hw.bridge import CRC_BYTES, HEADER, LARGEST_COUNT, QUEUE_BYTES, WINDOW

SHORTEST, LONGEST = HEADER.size + CRC_BYTES, HEADER.size + LARGEST_COUNT + CRC_BYTES
"""Bytes of a frame's content and CRC."""

LATE = 4
"""Bytes that may come before a sender sees that there is no room."""


class FrameQueue(wiring.Component):
    """A ring of bytes. Those of a frame become visible when its end says that it is good, else they are overwritten.

    Members
    -------
    valid : In(1), data : In(8), end : In(1), good : In(1)
        As of ``Deframer``. What comes when the ring is full spoils its frame.
    frames : Out(stream of a number of bytes)
        Each frame's, without its CRC; 0 for a bad one. The end of a frame is lost if ``WINDOW`` others wait.
    bytes : Out(stream of 8 bits)
        Those of the frames, in a row.
    room : Out(1)
        Whatever comes next finds room: for a sender that can wait.

    Latency: two cycles from an end to the frame's first byte; throughput: a byte a cycle.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "valid": In(1),
                "data": In(8),
                "end": In(1),
                "good": In(1),
                "frames": Out(stream.Signature(range(LONGEST + 1))),
                "bytes": Out(stream.Signature(8)),
                "room": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        length = Signal(range(LONGEST + 1))
        m.submodules.memory = memory = Memory(shape=8, depth=QUEUE_BYTES, init=[])
        m.submodules.lengths = lengths = SyncFIFOBuffered(width=len(length), depth=WINDOW)
        write, read = memory.write_port(), memory.read_port()

        first, last = Signal(range(QUEUE_BYTES)), Signal(range(QUEUE_BYTES))  # of the frame that is coming in
        taken = Signal(range(QUEUE_BYTES))
        after, next_taken = Signal.like(last), Signal.like(taken)
        room = Signal()
        spoilt = Signal()
        whole = Signal()
        m.d.comb += [
            after.eq(last + 1),
            room.eq((after != taken) & (length != LONGEST)),
            write.addr.eq(last),
            write.data.eq(self.data),
            write.en.eq(self.valid & room),
            whole.eq(self.good & ~spoilt & (length >= SHORTEST)),
            lengths.w_data.eq(0),
            lengths.w_en.eq(self.end),
        ]
        with m.If(self.valid):
            with m.If(room):
                m.d.sync += [last.eq(after), length.eq(length + 1)]
            with m.Else():
                m.d.sync += spoilt.eq(1)
        with m.If(self.end):
            m.d.sync += [length.eq(0), spoilt.eq(0), last.eq(first)]
            with m.If(whole):
                m.d.comb += lengths.w_data.eq(length - CRC_BYTES)
                with m.If(lengths.w_rdy):
                    m.d.sync += [last.eq(last - CRC_BYTES), first.eq(last - CRC_BYTES)]

        m.d.comb += [
            self.frames.valid.eq(lengths.r_rdy),
            self.frames.payload.eq(lengths.r_data),
            lengths.r_en.eq(self.frames.ready),
            next_taken.eq(taken + (self.bytes.valid & self.bytes.ready)),
            read.addr.eq(next_taken),
            self.bytes.payload.eq(read.data),
        ]
        used = Signal.like(last)
        m.d.comb += used.eq(last - taken)
        m.d.sync += [
            taken.eq(next_taken),
            self.bytes.valid.eq(next_taken != first),
            self.room.eq((used < QUEUE_BYTES - LONGEST - LATE) & (lengths.w_level < WINDOW - LATE)),
        ]
        return m
