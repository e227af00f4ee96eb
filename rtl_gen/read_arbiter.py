"""One AXI4 read port, shared by several readers."""

from __future__ import annotations

from amaranth.hdl import Const, Module
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from moe_hw.arch import Arch
from rtl_gen.bus import INCR, AXI4Read, burst_layout, word_layout
from rtl_gen.skid_buffer import SkidBuffer

MAX_BURSTS = 16
"""Read bursts that may be outstanding."""


class ReadArbiter(wiring.Component):
    """Shares the AXI4 read channels: the lowest-numbered reader that asks goes first, data return in request order.

    Latency: one cycle on requests, none on data; throughput: a burst or a word a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.
    readers : int
        Number of readers, at least 1.
    outstanding : int
        Bursts that may be requested and not yet answered.

    Members
    -------
    bursts_0 … : In(stream of burst_layout(arch)), words_0 … : Out(stream of word_layout(arch))
        Requests and data of each reader.
    ar…, r… : as in ``AXI4Read``
    idle : Out(1)
        No burst is outstanding.
    """

    def __init__(self, arch: Arch, readers: int, outstanding: int = MAX_BURSTS):
        if readers < 1:
            raise ValueError(f"readers: expected at least 1, got {readers}")
        self.arch = arch
        self.readers = readers
        self.outstanding = outstanding
        members = {}
        for index in range(readers):
            members[f"bursts_{index}"] = In(stream.Signature(burst_layout(arch)))
            members[f"words_{index}"] = Out(stream.Signature(word_layout(arch)))
        super().__init__({**members, **AXI4Read(arch).members, "idle": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        owner_bits = max(1, bits_for(self.readers - 1))
        m.submodules.owners = owners = SyncFIFOBuffered(width=owner_bits, depth=self.outstanding)
        m.d.comb += [
            self.arsize.eq(ceil_log2(arch.data_bits // 8)),
            self.arburst.eq(INCR),
            self.idle.eq(owners.level == 0),
        ]

        # A request is registered together with its place in the queue of owners.
        m.submodules.requests = requests = SkidBuffer(burst_layout(arch))
        m.d.comb += [
            self.arvalid.eq(requests.o.valid),
            self.araddr.eq(requests.o.payload.address),
            self.arlen.eq(requests.o.payload.length),
            requests.o.ready.eq(self.arready),
        ]
        with m.If(owners.w_rdy & requests.i.ready):
            taken = Const(0, 1)
            for index in range(self.readers):
                bursts = getattr(self, f"bursts_{index}")
                with m.If(bursts.valid & ~taken):
                    m.d.comb += [
                        bursts.ready.eq(1),
                        owners.w_en.eq(1),
                        owners.w_data.eq(index),
                        requests.i.valid.eq(1),
                        requests.i.payload.eq(bursts.payload),
                    ]
                taken = taken | bursts.valid

        for index in range(self.readers):
            words = getattr(self, f"words_{index}")
            mine = owners.r_rdy & (owners.r_data == index)
            m.d.comb += [
                words.valid.eq(self.rvalid & mine),
                words.payload.data.eq(self.rdata),
                words.payload.error.eq(self.rresp != 0),
            ]
            with m.If(mine):
                m.d.comb += self.rready.eq(words.ready)
        m.d.comb += owners.r_en.eq(self.rvalid & self.rready & self.rlast)
        return m
