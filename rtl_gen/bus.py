"""AXI4: signatures, bursts out of ranges, and one read port shared by several readers."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from moe_hw.arch import SEGMENT_ALIGN, Arch
from rtl_gen.types import address_bits

MAX_BURSTS = 16
"""Read bursts that may be outstanding."""


class AXI4(wiring.Signature):
    """An AXI4 master with the one ID 0: reads are answered in the order of their requests."""

    def __init__(self, arch: Arch):
        request = {"id": 1, "addr": arch.addr_bits, "len": 8, "size": 3, "burst": 2}
        members = {}
        for channel in ("ar", "aw"):
            members.update({f"{channel}{name}": Out(width) for name, width in request.items()})
            members.update({f"{channel}valid": Out(1), f"{channel}ready": In(1)})
        members.update({"rdata": In(arch.data_bits), "rresp": In(2), "rlast": In(1)})
        members.update({"rid": In(1), "rvalid": In(1), "rready": Out(1), "bid": In(1)})
        members.update({"wdata": Out(arch.data_bits), "wstrb": Out(arch.data_bits // 8), "wlast": Out(1)})
        members.update({"wvalid": Out(1), "wready": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1)})
        super().__init__(members)


class AXI4Lite(wiring.Signature):
    """An AXI4-Lite slave with 32-bit data, seen from the master."""

    def __init__(self, addr_bits: int):
        super().__init__(
            {
                "awaddr": Out(addr_bits), "awvalid": Out(1), "awready": In(1),
                "wdata": Out(32), "wstrb": Out(4), "wvalid": Out(1), "wready": In(1),
                "bresp": In(2), "bvalid": In(1), "bready": Out(1),
                "araddr": Out(addr_bits), "arvalid": Out(1), "arready": In(1),
                "rdata": In(32), "rresp": In(2), "rvalid": In(1), "rready": Out(1),
            }
        )  # fmt: skip


INCR = 1
"""AXI burst type: incrementing addresses."""

WORD_COUNT_BITS = 30


def range_layout(arch: Arch) -> data.StructLayout:
    """A range of memory: ``words`` bus words from ``address``, in units of 64 bytes."""
    return data.StructLayout({"address": address_bits(arch), "words": WORD_COUNT_BITS})


def burst_layout(arch: Arch) -> data.StructLayout:
    """A burst of ``length`` + 1 bus words from the byte address ``address``."""
    return data.StructLayout({"address": arch.addr_bits, "length": 8})


def word_layout(arch: Arch) -> data.StructLayout:
    """A bus word that was read, and whether the memory answered an error."""
    return data.StructLayout({"data": arch.data_bits, "error": 1})


class Bursts(wiring.Component):
    """Cuts ranges into bursts that do not cross a multiple of ``burst_bytes``.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    ranges : In(stream of range_layout(arch)), bursts : Out(stream of burst_layout(arch))
        A burst every other cycle. A range of no words gives no burst.
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
        m.d.comb += [
            to_boundary.eq(burst_words - address[:index_bits]),
            count.eq(Mux(left < to_boundary, left, to_boundary)),
            self.ranges.ready.eq((left == 0) & ~self.bursts.valid),
        ]
        with m.If(self.bursts.ready):
            m.d.sync += self.bursts.valid.eq(0)
        with m.If(self.ranges.valid & self.ranges.ready):
            unit = Cat(Const(0, ceil_log2(SEGMENT_ALIGN)), self.ranges.payload.address)
            m.d.sync += [address.eq(unit >> offset_bits), left.eq(self.ranges.payload.words)]
        with m.If((left != 0) & ~self.bursts.valid):
            m.d.sync += [
                self.bursts.valid.eq(1),
                self.bursts.payload.address.eq(Cat(Const(0, offset_bits), address)),
                self.bursts.payload.length.eq(count - 1),
                address.eq(address + count),
                left.eq(left - count),
            ]
        return m


class ReadArbiter(wiring.Component):
    """Shares the AXI4 read channels: the lowest-numbered reader that asks goes first, data return in request order.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.
    readers : int
        Number of readers, at least 2.

    Members
    -------
    bursts_0 … : In(stream of burst_layout(arch)), words_0 … : Out(stream of word_layout(arch))
        Requests and data of each reader.
    ar…, r… : the read half of ``AXI4``
    idle : Out(1)
        No burst is outstanding.

    Latency one cycle on requests, none on data; throughput one word a cycle.
    """

    def __init__(self, arch: Arch, readers: int):
        if readers < 2:
            raise ValueError(f"readers: expected at least 2, got {readers}")
        self.arch = arch
        self.readers = readers
        members = {}
        for index in range(readers):
            members[f"bursts_{index}"] = In(stream.Signature(burst_layout(arch)))
            members[f"words_{index}"] = Out(stream.Signature(word_layout(arch)))
        axi = {name: member for name, member in AXI4(arch).members.items() if name.startswith(("ar", "r"))}
        super().__init__({**members, **axi, "idle": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        owner_bits = bits_for(self.readers - 1)
        m.submodules.owners = owners = SyncFIFOBuffered(width=owner_bits, depth=MAX_BURSTS)
        m.d.comb += [
            self.arsize.eq(ceil_log2(arch.data_bits // 8)),
            self.arburst.eq(INCR),
            self.idle.eq(owners.level == 0),
        ]

        # A request is registered together with its place in the queue of owners.
        with m.If(self.arready):
            m.d.sync += self.arvalid.eq(0)
        free = owners.w_rdy & (~self.arvalid | self.arready)
        with m.If(free):
            taken = Const(0, 1)
            for index in range(self.readers):
                bursts = getattr(self, f"bursts_{index}")
                with m.If(bursts.valid & ~taken):
                    m.d.comb += [bursts.ready.eq(1), owners.w_en.eq(1), owners.w_data.eq(index)]
                    m.d.sync += [
                        self.arvalid.eq(1),
                        self.araddr.eq(bursts.payload.address),
                        self.arlen.eq(bursts.payload.length),
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
