"""A master at LiteDRAM's native port: segments become its commands."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from boards import Memory
from rtl_gen.sdram_types import segment_layout, word_layout

STAGED_WORDS = 16
"""Words whose commands LiteDRAM has taken, and not yet the words: its queue of a bank and its latency."""


class NativePort(wiring.Signature):
    """LiteDRAM's port, seen from the master. A command is one bus word.

    Data have no handshake: a word that is written is taken when ``wdata_ready``, a word that was read is there when
    ``rdata_valid``, both in the order of their commands.
    """

    def __init__(self, memory: Memory):
        word = word_layout(memory)
        super().__init__(
            {
                "cmd_valid": Out(1),
                "cmd_ready": In(1),
                "cmd_payload_we": Out(1),
                "cmd_payload_addr": Out(sum(segment_layout(memory)[name].width for name in ("column", "bank", "row"))),
                "wdata_ready": In(1),
                "wdata_payload_data": Out(word["data"].shape),
                "wdata_payload_we": Out(word["strobe"].shape),
                "rdata_valid": In(1),
                "rdata_payload_data": In(word["data"].shape),
            }
        )


class NativeMaster(wiring.Component):
    """Serves segments in their order, a command for each word.

    LiteDRAM takes the words of a write whenever it wants, so a write command is sent only when its word is here.

    Parameters
    ----------
    memory : Memory
        The board's memory.

    Members
    -------
    segments : In(stream of segment_layout(memory))
    writes : In(stream of word_layout(memory))
        The words of all write segments, in order.
    words : Out, word_valid : Out(1)
        The words of all read segments, in order; they do not wait.
    port : Out(NativePort(memory))

    Latency: one cycle from a segment to its first command, none on words. Throughput: a command a cycle, and one cycle
    in each segment.
    """

    def __init__(self, memory: Memory):
        self.memory = memory
        word = word_layout(memory)
        super().__init__(
            {
                "segments": In(stream.Signature(segment_layout(memory))),
                "writes": In(stream.Signature(word)),
                "words": Out(word["data"].shape),
                "word_valid": Out(1),
                "port": Out(NativePort(memory)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        port, writes = self.port, self.writes
        m.submodules.staged = staged = SyncFIFO(width=len(Cat(writes.payload)), depth=STAGED_WORDS)
        segment = Signal.like(self.segments.payload)
        active = Signal()
        may_write = writes.valid & staged.w_rdy
        m.d.comb += [
            self.segments.ready.eq(~active),
            port.cmd_valid.eq(active & (may_write | ~segment.write)),
            port.cmd_payload_we.eq(segment.write),
            port.cmd_payload_addr.eq(Cat(segment.column, segment.bank, segment.row)),
        ]
        sent = port.cmd_valid & port.cmd_ready
        with m.If(~active):
            m.d.sync += [segment.eq(self.segments.payload), active.eq(self.segments.valid)]
        with m.Elif(sent):
            m.d.sync += [segment.column.eq(segment.column + 1), segment.length.eq(segment.length - 1)]
            with m.If(segment.length == 0):
                m.d.sync += active.eq(0)

        data_bits = len(writes.payload.data)
        strobe = writes.payload.strobe & (~segment.masked).replicate(len(writes.payload.strobe))
        m.d.comb += [
            writes.ready.eq(sent & segment.write),
            staged.w_en.eq(writes.ready),
            staged.w_data.eq(Cat(writes.payload.data, strobe)),
            staged.r_en.eq(port.wdata_ready),
            port.wdata_payload_data.eq(staged.r_data[:data_bits]),
            port.wdata_payload_we.eq(staged.r_data[data_bits:]),
            self.words.eq(port.rdata_payload_data),
            self.word_valid.eq(port.rdata_valid),
        ]
        return m
