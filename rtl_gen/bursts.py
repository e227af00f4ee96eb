"""Cuts ranges of memory into AXI4 bursts."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moe_hw.arch import SEGMENT_ALIGN, Arch
from rtl_gen.bus import WORD_COUNT_BITS, burst_layout, range_layout


class Bursts(wiring.Component):
    """Cuts ranges into bursts that do not cross a multiple of ``burst_bytes``.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    ranges : In(stream of range_layout(arch)), bursts : Out(stream of burst_layout(arch))
        A range of no words gives no burst.

    Latency: three cycles; throughput: a burst every other cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {"ranges": In(stream.Signature(range_layout(arch))), "bursts": Out(stream.Signature(burst_layout(arch)))}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        word_bytes = arch.data_bits // 8
        burst_words = min(256, arch.burst_bytes // word_bytes)
        offset_bits = ceil_log2(word_bytes)
        index_bits = ceil_log2(burst_words)
        address = Signal(arch.addr_bits - offset_bits)  # in bus words
        left = Signal(WORD_COUNT_BITS)
        to_boundary = Signal(range(burst_words + 1))
        count = Signal(range(burst_words + 1))
        counted = Signal()  # `count` is of the range's present rest
        cut = Signal()
        done = Signal(init=1)  # no range is under way
        m.d.comb += [
            to_boundary.eq(burst_words - address[:index_bits]),
            cut.eq(counted & ~self.bursts.valid),
            self.ranges.ready.eq(done & ~self.bursts.valid),
        ]
        m.d.sync += [
            count.eq(Mux(left < to_boundary, left, to_boundary)),
            counted.eq((left != 0) & ~cut),
            done.eq((left == 0) & ~(self.ranges.valid & self.ranges.ready)),
        ]
        with m.If(self.bursts.ready):
            m.d.sync += self.bursts.valid.eq(0)
        with m.If(self.ranges.valid & self.ranges.ready):
            unit = Cat(Const(0, ceil_log2(SEGMENT_ALIGN)), self.ranges.payload.address)
            m.d.sync += [address.eq(unit >> offset_bits), left.eq(self.ranges.payload.words)]
        with m.If(cut):
            m.d.sync += [
                self.bursts.valid.eq(1),
                self.bursts.payload.address.eq(Cat(Const(0, offset_bits), address)),
                self.bursts.payload.length.eq(count - 1),
                address.eq(address + count),
                left.eq(left - count),
            ]
        return m
