"""The pins of an SDR SDRAM: their signature, and the registers next to the pads."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import io, wiring
from amaranth.lib.wiring import In, Out

from boards import Memory
from rtl_gen.sdram_timing import transfers

PAD_CLOCKS = 5
"""Clocks that the registers of the pads add between a command and its answer: two on the way out, three back."""


def bank_bits(memory: Memory) -> int:
    """Bits of a bank's number."""
    return (memory.banks - 1).bit_length()


def row_bits(memory: Memory) -> int:
    """Bits of a row's number in its bank, which are the chip's address pins."""
    return (memory.size_bytes // (memory.banks * memory.row_bytes) - 1).bit_length()


def column_bits(memory: Memory) -> int:
    """Bits of a bus word's place in a row: as many columns as a command has transfers."""
    return (memory.row_bytes // (transfers(memory) * memory.data_bits // 8) - 1).bit_length()


class SdramPins(wiring.Signature):
    """Commands and data of one chip, seen from the controller: two clocks before they are at the pins, or after.

    Commands are true when 1; the pads invert them. The chip's clock is not among them: it is the top level's, the
    inverse of the controller's.
    """

    def __init__(self, memory: Memory):
        super().__init__(
            {
                "clk_en": Out(1),
                "cs": Out(1),
                "ras": Out(1),
                "cas": Out(1),
                "we": Out(1),
                "ba": Out(bank_bits(memory)),
                "a": Out(row_bits(memory)),
                "dqm": Out(memory.data_bits // 8),
                "dq_o": Out(memory.data_bits),
                "dq_oe": Out(1),
                "dq_i": In(memory.data_bits),
            }
        )


class SdramPads(wiring.Component):
    """A register in the pad of each pin, so that the chip's setup and hold times do not depend on placement.

    And one before it, or two behind it, for the pads are spread over a side of the FPGA.

    Parameters
    ----------
    memory : Memory
        The board's memory.
    ports : object
        An I/O port for each pin, with the names of ``amaranth_boards``' ``SDRAMResource``: ``clk_en``, ``cs``, ``ras``,
        ``cas``, ``we``, ``ba``, ``a``, ``dqm``, ``dq``. What ``platform.request("sdram", dir=...)`` returns, or
        simulation ports.

    Members
    -------
    pins : In(SdramPins(memory))

    Latency: two clocks from a member to a pin, three from a pin to a member.
    """

    def __init__(self, memory: Memory, ports: Any):
        self.ports = ports
        super().__init__({"pins": In(SdramPins(memory))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name in ("clk_en", "cs", "ras", "cas", "we", "ba", "a", "dqm"):
            m.submodules[name] = buffer = io.FFBuffer("o", getattr(self.ports, name))
            domain = m.d.comb if name == "clk_en" else m.d.sync  # which never changes, and is to be high from the start
            domain += buffer.o.eq(getattr(self.pins, name))
        m.submodules.dq = dq = io.FFBuffer("io", self.ports.dq)
        tristate = Signal(init=1)  # as the pads have it, so that no inverter is between the two registers
        read = Signal.like(dq.i)
        m.d.comb += dq.oe.eq(~tristate)
        m.d.sync += [
            dq.o.eq(self.pins.dq_o),
            tristate.eq(~self.pins.dq_oe),
            read.eq(dq.i),
            self.pins.dq_i.eq(read),
        ]
        return m
