"""AXI4 and AXI4-Lite signatures, and the records with which blocks ask for memory."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import Arch
from rtl_gen.types import address_bits

INCR = 1
"""AXI burst type: incrementing addresses."""

OKAY, SLVERR = 0, 2
"""AXI response: the slave does not do that."""

WORD_COUNT_BITS = 30
"""Bits of a number of bus words."""


def _request(channel: str, arch: Arch) -> dict[str, wiring.Member]:
    """The members of an AXI4 address channel."""
    widths = {"id": 1, "addr": arch.addr_bits, "len": 8, "size": 3, "burst": 2}
    fields = {f"{channel}{name}": Out(width) for name, width in widths.items()}
    return {**fields, f"{channel}valid": Out(1), f"{channel}ready": In(1)}


class AXI4Read(wiring.Signature):
    """The read half of :class:`AXI4`."""

    def __init__(self, arch: Arch):
        answer = {"rid": In(1), "rdata": In(arch.data_bits), "rresp": In(2), "rlast": In(1)}
        super().__init__({**_request("ar", arch), **answer, "rvalid": In(1), "rready": Out(1)})


class AXI4Write(wiring.Signature):
    """The write half of :class:`AXI4`."""

    def __init__(self, arch: Arch):
        members = {**_request("aw", arch), "bid": In(1)}
        members.update({"wdata": Out(arch.data_bits), "wstrb": Out(arch.data_bits // 8), "wlast": Out(1)})
        members.update({"wvalid": Out(1), "wready": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1)})
        super().__init__(members)


class AXI4(wiring.Signature):
    """An AXI4 master with the one ID 0: reads are answered in the order of their requests."""

    def __init__(self, arch: Arch):
        super().__init__({**AXI4Read(arch).members, **AXI4Write(arch).members})


def connect_half(m: Module, master: wiring.PureInterface, block: wiring.Component, half: wiring.Signature) -> None:
    """Connect the members of ``half`` (``AXI4Read``, ``AXI4Write``), which are the block's own, to a master's."""
    for name, member in half.members.items():
        outer, inner = getattr(master, name), getattr(block, name)
        m.d.comb += outer.eq(inner) if member.flow is Out else inner.eq(outer)


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


def range_layout(arch: Arch) -> data.StructLayout:
    """A range of memory: ``words`` bus words from ``address``, in units of 64 bytes."""
    return data.StructLayout({"address": address_bits(arch), "words": WORD_COUNT_BITS})


def burst_layout(arch: Arch) -> data.StructLayout:
    """A burst of ``length`` + 1 bus words from the byte address ``address``."""
    return data.StructLayout({"address": arch.addr_bits, "length": 8})


def word_layout(arch: Arch) -> data.StructLayout:
    """A bus word that was read, and whether the memory answered an error."""
    return data.StructLayout({"data": arch.data_bits, "error": 1})
