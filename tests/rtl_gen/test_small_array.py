"""A small array from Amaranth to a bitstream whose timing is met; LUTs and multipliers for each MAC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Module
from amaranth.lib import io
from amaranth.lib.cdc import ResetSynchronizer
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from moe_hw.arch import ROWS, Arch
from rtl_gen.array import Array
from rtl_gen.bitstream import BITSTREAM, pack, place_and_route, synthesise
from rtl_gen.board_design import for_platform
from rtl_gen.ecp5_pll import ECP5PLL, Clock
from rtl_gen.probe import Probe

COLUMNS = 4
MHZ = 80.0

LUTS_PER_MAC, DSPS_PER_MAC = 34.8, 0.5
"""Of the array with its row banks and its probe, as this test measured them."""


class SmallArray(Elaboratable):
    """The array between registers, on the clock and an LED of a ULX3S."""

    def __init__(self) -> None:
        self.probe = Probe(Array(Arch(columns=COLUMNS)))
        self.repeated = self.probe.repeated

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.oscillator = oscillator = io.Buffer("i", platform.request("clk25", dir="-"))
        m.submodules.pll = pll = ECP5PLL(25, [Clock(MHZ)])
        m.domains.sync = ClockDomain()
        m.d.comb += [pll.clk_in.eq(oscillator.i), ClockSignal().eq(pll.clk_0)]
        m.submodules.reset = ResetSynchronizer(~pll.locked)
        m.submodules.probe = self.probe
        m.submodules.led = led = io.Buffer("o", platform.request("led", 0, dir="-"))
        m.d.comb += led.o.eq(self.probe.o)
        return m


def test_a_small_array_becomes_a_bitstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    design = for_platform(SmallArray(), ULX3S_85F_Platform(), {"sync": MHZ})
    netlist = synthesise(design, lambda *_: None)
    macs = ROWS * COLUMNS
    assert netlist.resources.dsps / macs == DSPS_PER_MAC
    assert netlist.resources.luts / macs == pytest.approx(LUTS_PER_MAC, rel=0.05)

    routing = place_and_route(design, netlist, 1, lambda *_: None)
    assert routing.met, routing
    bits = (pack(routing, lambda *_: None).folder / BITSTREAM).read_bytes()
    assert b"LFE5U-85F" in bits[:256] and len(bits) > 100_000
