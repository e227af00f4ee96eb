"""The ULX3S: pins, clocks and pads around a :class:`rtl_gen.serial_board.SerialBoard`."""

from __future__ import annotations

import dataclasses
from typing import Any

from amaranth.hdl import ClockDomain, ClockSignal, DomainRenamer, Elaboratable, Module, ResetSignal, Signal
from amaranth.lib import io
from amaranth.lib.cdc import AsyncFFSynchronizer
from amaranth.lib.wiring import connect
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from boards import Board
from moe_hw.arch import Arch
from moe_hw.bridge import BAUD
from moe_hw.errors import UsageError
from moe_hw.generated import VERILOG, Generated
from rtl_gen.board_design import BoardDesign, for_platform
from rtl_gen.ecp5_pll import ECP5PLL, Clock
from rtl_gen.floorplan import floorplan
from rtl_gen.global_net import global_net
from rtl_gen.sdram import DOMAIN
from rtl_gen.sdram_pins import SdramPads
from rtl_gen.serial_board import SerialBoard

OSCILLATOR_MHZ = 25.0

SDRAM_MHZ = 400 / 3
"""What the PLL makes of the oscillator, 0.25 % above the 133 MHz of the board file: all times are as many clocks."""

HEARTBEAT_BITS = 26
"""Of a counter of fabric clocks whose highest bit is an LED: it blinks about once a second."""


class Ulx3s(Elaboratable):
    """All that the FPGA of a ULX3S holds. LED 0 blinks if the fabric has a clock; LED 1 is on while commands wait.

    Parameters
    ----------
    board : Board
        Its clock and memory.
    arch : Arch
        Sizes of the accelerator.
    """

    def __init__(self, board: Board, arch: Arch):
        self.board = board
        self._fpga = SerialBoard(board, arch, BAUD)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.oscillator = oscillator = io.Buffer("i", platform.request("clk25", dir="-"))
        m.submodules.pll = pll = ECP5PLL(OSCILLATOR_MHZ, [Clock(self.board.clock_mhz), Clock(SDRAM_MHZ)])
        m.d.comb += pll.clk_in.eq(oscillator.i)
        for domain, clock in (("sync", pll.clk_0), (DOMAIN, pll.clk_1)):
            m.domains += ClockDomain(domain)
            reset = Signal(name=f"{domain}_not_ready")
            m.submodules[f"reset_{domain}"] = AsyncFFSynchronizer(~pll.locked, reset, o_domain=domain)
            m.d.comb += [
                ClockSignal(domain).eq(clock),
                ResetSignal(domain).eq(global_net(m, f"{domain}_reset", reset, platform)),
            ]
        m.submodules.fpga = fpga = self._fpga

        uart = platform.request("uart", dir="-")
        m.submodules.rx = rx = io.Buffer("i", uart.rx)
        m.submodules.tx = tx = io.Buffer("o", uart.tx)
        m.d.comb += [fpga.rx.eq(rx.i), tx.o.eq(fpga.tx)]

        chip = platform.request("sdram", dir="-")
        pads = SdramPads(self.board.memory, chip)
        m.submodules.pads = DomainRenamer(DOMAIN)(pads)
        connect(m, fpga.pins, pads.pins)
        # The chip's clock is the inverse of its controller's, from a register of its pad as all its other pins.
        m.submodules.chip_clock = chip_clock = io.DDRBuffer("o", chip.clk, o_domain=DOMAIN)
        m.d.comb += [chip_clock.o[0].eq(0), chip_clock.o[1].eq(1)]

        heartbeat = Signal(HEARTBEAT_BITS)
        m.d.sync += heartbeat.eq(heartbeat + 1)
        for index, value in enumerate((heartbeat[-1], fpga.busy)):
            m.submodules[f"led_{index}"] = led = io.Buffer("o", platform.request("led", index, dir="-"))
            m.d.comb += led.o.eq(value)
        # Low, it would have the ESP32 on the board start its loader, which resets the FPGA.
        m.submodules.wireless = gpio0 = io.Buffer("o", platform.request("esp32", dir="-").gpio0)
        m.d.comb += gpio0.o.eq(1)
        return m


def ulx3s(generated: Generated) -> BoardDesign:
    """The board with a generated accelerator, whose Verilog is taken as it was written.

    Raises:
        UsageError: it is to have a place in the network.
    """
    if generated.board.ethernet is not None:
        raise UsageError(
            f"{generated.board.name}: ethernet: expected no such key, as the board has no Ethernet; remove it"
        )
    clocks = {"sync": generated.board.clock_mhz, DOMAIN: SDRAM_MHZ}
    design = for_platform(Ulx3s(generated.board, generated.arch), ULX3S_85F_Platform(), clocks)
    sources = {**design.sources, VERILOG: generated.verilog}
    return dataclasses.replace(design, sources=sources, places=floorplan(generated.arch))
