"""The AXI4 slave in front of a memory controller: bursts become segments, in the clock of the fabric."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from boards import Memory
from moe_hw.arch import Arch
from rtl_gen.bus import AXI4, INCR, OKAY, SLVERR
from rtl_gen.sdram_types import segment_layout, word_layout

MAX_BURST_WORDS = 256
"""Of an AXI4 burst."""

READ_WORDS = 512
"""Words that may have been asked for and not yet been answered: a block RAM of them."""

MAX_READS = 16
"""Read bursts that may be under way."""


class SdramAxi(wiring.Component):
    """Takes one burst at a time, reads and writes in turn, and cuts it where a row ends.

    A read is sent when there is room for the longest burst's words, so that they never have to wait on their way back.
    A write is sent when all its words are here, so that the chip never waits for a master. Its answer says that every
    later read sees it: segments are served in their order.

    A burst that is not INCR, whose words are not as wide as the bus, that is not aligned or that leaves the memory is
    answered with SLVERR: a read with words of no meaning, and a write changes nothing.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator, for the bus.
    memory : Memory
        The board's memory; its words are as wide as the bus.

    Members
    -------
    axi : In(AXI4(arch))
        The slave; its answers have ID 0.
    segments : Out(stream of segment_layout(memory))
    writes : Out(stream of word_layout(memory))
    words : In(stream of a bus word)

    Latency: three cycles from a read to its segment, none on words. Throughput: a word a cycle; a read burst every
    three cycles, a write burst every ``length`` + 5.
    """

    def __init__(self, arch: Arch, memory: Memory):
        self.arch = arch
        self.memory = memory
        super().__init__(
            {
                "axi": In(AXI4(arch)),
                "segments": Out(stream.Signature(segment_layout(memory))),
                "writes": Out(stream.Signature(word_layout(memory))),
                "words": In(stream.Signature(arch.data_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        axi = self.axi

        # ---- a burst waits at either channel; a write's words are collected ----
        read_waits, read = self._accept(m, "ar")
        write_waits, write = self._accept(m, "aw")
        collected = Signal()
        count = Signal.like(write.length)
        m.d.comb += [
            self.writes.valid.eq(axi.wvalid & write_waits & ~collected),
            self.writes.payload.data.eq(axi.wdata),
            self.writes.payload.strobe.eq(axi.wstrb),
            axi.wready.eq(self.writes.ready & write_waits & ~collected),
        ]
        with m.If(axi.wvalid & axi.wready):
            m.d.sync += count.eq(count + 1)
            with m.If(count == write.length):
                m.d.sync += [count.eq(0), collected.eq(1)]

        # ---- one of the two is cut into segments ----
        m.submodules.answers = answers = SyncFIFOBuffered(width=len(read.length) + 1, depth=MAX_READS)
        room = Signal(range(READ_WORDS + 1), init=READ_WORDS)
        asked = Signal(range(MAX_BURST_WORDS + 1))
        burst = Signal.like(read)
        writing = Signal()
        last = Signal(len(burst.word) + 1)  # the place of the last word, and whether that is outside the memory
        error, done = Signal(), Signal()
        columns = len(self.segments.payload.column)
        may_read = read_waits & (room >= MAX_BURST_WORDS) & answers.w_rdy
        may_write = write_waits & collected & ~axi.bvalid
        crosses = last[columns] != burst.word[columns]
        segment = self.segments.payload
        m.d.comb += [
            error.eq(burst.illegal | last[-1]),
            segment.write.eq(writing),
            segment.masked.eq(error),
            answers.w_data.eq(Cat(burst.length, error)),
        ]
        with m.FSM():
            with m.State("choose"):
                with m.If(may_write & ~(may_read & writing)):
                    m.d.sync += [burst.eq(write), writing.eq(1), write_waits.eq(0), collected.eq(0)]
                    m.next = "measure"
                with m.Elif(may_read):
                    m.d.sync += [burst.eq(read), writing.eq(0), read_waits.eq(0)]
                    m.d.comb += asked.eq(read.length + 1)
                    m.next = "measure"
            with m.State("measure"):
                m.d.sync += last.eq(burst.word + burst.length)
                m.next = "first"
            with m.State("first"):
                m.d.comb += [
                    self.segments.valid.eq(1),
                    Cat(segment.column, segment.bank, segment.row).eq(burst.word),
                    segment.length.eq(Mux(crosses, ~segment.column, burst.length)),
                    answers.w_en.eq(self.segments.ready & ~writing),
                ]
                with m.If(self.segments.ready):
                    with m.If(crosses):
                        m.next = "second"
                    with m.Else():
                        m.d.comb += done.eq(1)
                        m.next = "choose"
            with m.State("second"):
                m.d.comb += [
                    self.segments.valid.eq(1),
                    Cat(segment.bank, segment.row).eq(last[columns:]),
                    segment.length.eq(last[:columns]),
                ]
                with m.If(self.segments.ready):
                    m.d.comb += done.eq(1)
                    m.next = "choose"

        with m.If(done & writing):
            m.d.sync += [axi.bvalid.eq(1), axi.bresp.eq(Mux(error, SLVERR, OKAY))]
        with m.Elif(axi.bready):
            m.d.sync += axi.bvalid.eq(0)

        # ---- words go back, and make room ----
        index = Signal.like(burst.length)
        length, failed = answers.r_data[: len(index)], answers.r_data[-1]
        taken = axi.rvalid & axi.rready
        m.d.comb += [
            axi.rvalid.eq(answers.r_rdy & self.words.valid),
            axi.rdata.eq(self.words.payload),
            axi.rresp.eq(Mux(failed, SLVERR, OKAY)),
            axi.rlast.eq(index == length),
            self.words.ready.eq(answers.r_rdy & axi.rready),
            answers.r_en.eq(taken & axi.rlast),
        ]
        m.d.sync += room.eq(room - asked + taken)
        with m.If(taken):
            m.d.sync += index.eq(Mux(axi.rlast, 0, index + 1))
        return m

    def _accept(self, m: Module, channel: str) -> tuple[Signal, data.View]:
        """Whether a burst waits that came through ``channel``, and what is known about it."""
        address, size, burst = (getattr(self.axi, f"{channel}{name}") for name in ("addr", "size", "burst"))
        valid, ready = getattr(self.axi, f"{channel}valid"), getattr(self.axi, f"{channel}ready")
        word_shift, memory_bits = ceil_log2(self.arch.data_bits // 8), ceil_log2(self.memory.size_bytes)
        waits = Signal(name=f"{channel}_waits")
        head = Signal(
            data.StructLayout({"word": memory_bits - word_shift, "length": 8, "illegal": 1}), name=f"{channel}_head"
        )
        m.d.comb += ready.eq(~waits)
        with m.If(valid & ready):
            m.d.sync += [
                waits.eq(1),
                head.word.eq(address[word_shift:memory_bits]),
                head.length.eq(getattr(self.axi, f"{channel}len")),
                head.illegal.eq(
                    (burst != INCR) | (size != word_shift) | (address[:word_shift] != 0) | (address[memory_bits:] != 0)
                ),
            ]
        return waits, head
