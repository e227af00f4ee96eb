"""Checks a request's header before anything is done."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moe_hw.arch import Arch
from moe_hw.bridge import Opcode, largest_count
from moe_hw.ddr3 import REGISTERS_ADDR_BITS, REGISTERS_BASE
from rtl_gen.frame_queue import LONGEST
from rtl_gen.registers import CSR_ADDR_BITS

HEADER_LAYOUT = data.StructLayout({"sequence": 8, "opcode": 8, "count": 16, "address": 32})
"""``moe_hw.bridge.HEADER`` as it comes in: lowest byte first."""


class RequestCheck(wiring.Component):
    """Whether a request is one of ``docs/bridge.md``.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.
    memory_registers : bool
        Among the CSRs are those of ``moe_hw.ddr3``.

    Members
    -------
    header : In(HEADER_LAYOUT), data : In
        The header, and the number of bytes that follow it.
    sound : Out(1)
        The opcode is known, and count and data are allowed with it.
    reachable : Out(1)
        The address is one of the opcode's bus.

    Latency: one cycle.
    """

    def __init__(self, arch: Arch, memory_registers: bool = False):
        self.arch = arch
        self.memory_registers = memory_registers
        super().__init__(
            {"header": In(HEADER_LAYOUT), "data": In(range(LONGEST + 1)), "sound": Out(1), "reachable": Out(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        opcode, count, address = self.header.opcode, self.header.count, self.header.address
        boundary = ceil_log2(largest_count(self.arch.burst_bytes))
        is_csr = address[CSR_ADDR_BITS:] == 0
        if self.memory_registers:
            is_csr |= address[REGISTERS_ADDR_BITS:] == REGISTERS_BASE >> REGISTERS_ADDR_BITS
        allowed, there = Signal(), Signal()
        with m.Switch(opcode):
            with m.Case(Opcode.HELLO, Opcode.RESET, Opcode.CLOCK):
                m.d.comb += [allowed.eq(count == 0), there.eq(1)]
            with m.Case(Opcode.CSR_READ, Opcode.CSR_WRITE):
                m.d.comb += [allowed.eq(count == 4), there.eq((address[:2] == 0) & is_csr)]
            with m.Case(Opcode.MEMORY_READ, Opcode.MEMORY_WRITE):
                last = address[:boundary] + count - 1
                m.d.comb += [
                    allowed.eq((count != 0) & (last[boundary:] == 0)),
                    there.eq(address[self.arch.addr_bits :] == 0),
                ]
        has_data = opcode.matches(Opcode.CSR_WRITE, Opcode.MEMORY_WRITE)
        m.d.sync += [
            self.sound.eq(allowed & (self.data == Mux(has_data, count, 0))),
            self.reachable.eq(there),
        ]
        return m
