"""A small design for the ULX3S that stands in for a board's top level: two clocks of a PLL, a multiplier, pins."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Module, Signal
from amaranth.lib import io, wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from rtl_gen.board_design import BoardDesign, for_platform
from rtl_gen.ecp5_pll import ECP5PLL, Clock
from rtl_gen.emit import instance

CLOCKS = {"sync": 80.0, "mem": 400 / 3}


class Square(wiring.Component):
    """A register with the square of its input, emitted once beside the design."""

    def __init__(self) -> None:
        super().__init__({"x": In(8), "y": Out(16)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.sync += self.y.eq(self.x * self.x)
        return m


class StandIn(Elaboratable):
    """A counter, its square on the LEDs; a second counter in the memory's domain on its data pins.

    Parameters
    ----------
    chain : int
        Multiplications in a row between two registers: enough of them are slower than any clock.
    """

    def __init__(self, chain: int = 0):
        self.chain = chain
        self.square = Square()
        self.repeated = {"square": self.square}

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.oscillator = oscillator = io.Buffer("i", platform.request("clk25", dir="-"))
        m.submodules.pll = pll = ECP5PLL(25, [Clock(CLOCKS["sync"]), Clock(CLOCKS["mem"]), Clock(CLOCKS["mem"], 180)])
        m.d.comb += pll.clk_in.eq(oscillator.i)
        for name, clock in (("sync", pll.clk_0), ("mem", pll.clk_1)):
            m.domains += ClockDomain(name)
            m.d.comb += ClockSignal(name).eq(clock)
            m.submodules[f"reset_{name}"] = ResetSynchronizer(~pll.locked, domain=name)

        count = Signal(8)
        total = count
        for _ in range(self.chain):
            total = (total * total)[:8]
        square = self.square.signature.flip().create(path=("square",))
        m.submodules.square = instance("square", self.square.signature, square)
        m.d.sync += count.eq(total + 1)
        m.d.comb += square.x.eq(count)
        for index in range(8):
            m.submodules[f"led_{index}"] = led = io.Buffer("o", platform.request("led", index, dir="-"))
            m.d.comb += led.o.eq(square.y[index + 8])

        sdram = platform.request("sdram", dir="-")
        m.submodules.clk = clk = io.Buffer("o", sdram.clk)
        m.submodules.dq = dq = io.FFBuffer("io", sdram.dq, i_domain="mem", o_domain="mem")
        beat = Signal(16)
        m.d.mem += beat.eq(beat + dq.i[0])
        m.d.comb += [clk.o.eq(pll.clk_2), dq.o.eq(beat), dq.oe.eq(beat[0])]
        return m


def stand_in(chain: int = 0) -> BoardDesign:
    """The design for a ULX3S."""
    return for_platform(StandIn(chain), ULX3S_85F_Platform(), CLOCKS)
