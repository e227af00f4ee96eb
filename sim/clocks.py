"""Clocks and resets of a simulated design, which are ports where an FPGA has a PLL."""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import ClockDomain, ClockSignal, Module, ResetSignal, Signal


def period_fs(mhz: float) -> int:
    """Femtoseconds of a cycle: the time of the C++ models."""
    return round(1e9 / mhz)


def clock_domains(m: Module, ports: Mapping[str, tuple[Signal, Signal]]) -> None:
    """Declare domains in ``m``: name to (clock, reset). They come in that order, so the text is always the same."""
    for name, (clk, rst) in ports.items():
        m.domains += ClockDomain(name)
        m.d.comb += [ClockSignal(name).eq(clk), ResetSignal(name).eq(rst)]
