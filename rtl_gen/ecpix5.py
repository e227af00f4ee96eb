"""The ECPIX-5: pins, clocks and LiteDRAM's PHY around a :class:`rtl_gen.serial_board.SerialBoard`."""

from __future__ import annotations

import dataclasses
from typing import Any

from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Instance, Module, ResetSignal, Signal
from amaranth.lib import io
from amaranth.lib.cdc import AsyncFFSynchronizer
from amaranth_boards.ecpix5 import ECPIX585Platform

from boards import Board
from moe_hw.arch import Arch
from moe_hw.bridge import BAUD
from moe_hw.generated import VERILOG, Generated
from rtl_gen import liteeth_core
from rtl_gen.board_design import BoardDesign, for_platform
from rtl_gen.datagrams import DOMAIN as NETWORK
from rtl_gen.datagrams import MHZ as NETWORK_MHZ
from rtl_gen.datagrams import PHY_DOMAIN as ETHERNET
from rtl_gen.datagrams import PHY_MHZ as ETHERNET_MHZ
from rtl_gen.datagrams import PhyBytes
from rtl_gen.ddr3 import DOMAIN
from rtl_gen.dfi import Dfi, RegisterBus
from rtl_gen.ecp5_pll import ECP5PLL, Clock
from rtl_gen.emit import connections
from rtl_gen.floorplan import floorplan
from rtl_gen.global_net import global_net
from rtl_gen.litedram_core import CONTROLLER_MODULE, PHY_MODULE, clock_mhz, controller_verilog, phy_verilog
from rtl_gen.serial_board import SerialBoard

OSCILLATOR_MHZ = 100.0

INIT_MHZ = 24.0
"""Clock of the sequence in which the PHY starts its clocks."""

HEARTBEAT_BITS = 26
"""Of a counter of fabric clocks whose highest bit is an LED: it blinks about once a second."""

PADS = {
    "a": "a", "ba": "ba", "ras_n": "ras", "cas_n": "cas", "we_n": "we", "cke": "clk_en", "odt": "odt",
    "clk_p": "clk", "dqs_p": "dqs", "dq": "dq", "dm": "dm",
}  # fmt: skip
"""What LiteDRAM and ``amaranth_boards`` call the chip's pins."""

NETWORK_PADS = {
    "clk_tx": "tx_clk", "clk_rx": "rx_clk", "rst_n": "rst",
    "tx_ctl": "tx_ctrl", "tx_data": "tx_data", "rx_ctl": "rx_ctrl", "rx_data": "rx_data",
}  # fmt: skip
"""What LiteEth's PHY and ``amaranth_boards`` call the pins of the Ethernet chip."""

STRAPS = "".join(f'IOBUF PORT "eth_rgmii_0__rx_data__io[{pin}]" PULLMODE=UP;\n' for pin in range(4))
"""As the Ethernet chip's reset ends it reads from these pins that it is to offer all rates and use RGMII."""


class Ecpix5(Elaboratable):
    """All that the FPGA of an ECPIX-5 holds. LED 0 blinks green if the fabric has a clock; LED 1 is green on commands.

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
        m.submodules.fpga = fpga = self._fpga
        self._clocks_and_phy(m, platform)

        uart = platform.request("uart", dir="-")
        m.submodules.rx = rx = io.Buffer("i", uart.rx)
        m.submodules.tx = tx = io.Buffer("o", uart.tx)
        m.d.comb += [fpga.rx.eq(rx.i), tx.o.eq(fpga.tx)]
        if self.board.ethernet is not None:
            self._network(m, platform)

        heartbeat = Signal(HEARTBEAT_BITS)
        m.d.sync += heartbeat.eq(heartbeat + 1)
        for index, value in enumerate((heartbeat[-1], fpga.busy)):
            pins = platform.request("rgb_led", index, dir="-")
            for colour, lit in (("r", 0), ("g", value), ("b", 0)):
                m.submodules[f"led_{index}_{colour}"] = led = io.Buffer("o", getattr(pins, colour))
                m.d.comb += led.o.eq(lit)
        return m

    def _clocks_and_phy(self, m: Module, platform: Any) -> None:
        """A PLL makes the chip's clock, the PHY stops and starts it, and half of it is the controller's."""
        memory = self.board.memory
        m.submodules.oscillator = oscillator = io.Buffer("i", platform.request("clk100", dir="-"))
        wanted = [Clock(2 * clock_mhz(memory)), Clock(self.board.clock_mhz), Clock(INIT_MHZ)]
        m.submodules.pll = pll = ECP5PLL(OSCILLATOR_MHZ, wanted)
        m.d.comb += pll.clk_in.eq(oscillator.i)
        edge_clock, stop, restart = Signal(), Signal(), Signal()
        controller_clock = Signal()
        m.submodules.edge_clock = Instance("ECLKSYNCB", i_ECLKI=pll.clk_0, i_STOP=stop, o_ECLKO=edge_clock)
        m.submodules.divider = Instance(
            "CLKDIVF", p_DIV="2.0", i_CLKI=edge_clock, i_RST=restart, i_ALIGNWD=0, o_CDIVX=controller_clock
        )
        clocks = {"init": pll.clk_2, DOMAIN: controller_clock, "sync": pll.clk_1}
        locked = pll.locked
        if self.board.ethernet is not None:
            # The first PLL has no output left.
            m.submodules.network_pll = network_pll = ECP5PLL(OSCILLATOR_MHZ, [Clock(NETWORK_MHZ)])
            m.d.comb += network_pll.clk_in.eq(oscillator.i)
            clocks[NETWORK] = network_pll.clk_0
            locked = locked & network_pll.locked
        for domain, clock in clocks.items():
            # The PHY restarts the controller's clock once: all others are in reset until then.
            asynchronous = ~pll.locked if domain == "init" else ~locked | restart
            m.domains += ClockDomain(domain)
            reset = Signal(name=f"{domain}_not_ready")
            m.submodules[f"reset_{domain}"] = AsyncFFSynchronizer(asynchronous, reset, o_domain=domain)
            m.d.comb += ClockSignal(domain).eq(clock)
            if domain == "sync":
                reset = global_net(m, "sync_reset", reset, platform)
            m.d.comb += ResetSignal(domain).eq(reset)

        chip = platform.request("ddr3", dir="-")
        ports = {name: getattr(chip, pin) for name, pin in PADS.items()}
        pins = self._fpga.pins
        m.submodules.phy = Instance(
            PHY_MODULE,
            i_sys_clk=ClockSignal(DOMAIN),
            i_sys_rst=ResetSignal(DOMAIN),
            i_sys2x_clk=edge_clock,
            i_init_clk=ClockSignal("init"),
            i_init_rst=ResetSignal("init"),
            o_stop=stop,
            o_reset=restart,
            **connections(Dfi(memory).flip(), pins.dfi, "dfi_"),
            **connections(RegisterBus().flip(), pins.csr, "csr_"),
            **{f"io_pads_{name}": getattr(port, "p", None) or port.io for name, port in ports.items()},
        )

    def _network(self, m: Module, platform: Any) -> None:
        """Both directions have the clock that the Ethernet chip sends."""
        chip = platform.request("eth_rgmii", dir="-")
        m.domains += ClockDomain(ETHERNET)
        reset = Signal(name="ethernet_not_ready")
        m.d.comb += ResetSignal(ETHERNET).eq(global_net(m, "ethernet_reset", reset, platform))
        m.submodules.ethernet_phy = Instance(
            liteeth_core.PHY_MODULE,
            i_sys_clk=ClockSignal(NETWORK),
            i_sys_rst=ResetSignal(NETWORK),
            o_eth_clk=ClockSignal(ETHERNET),
            o_eth_rst=reset,
            **connections(PhyBytes().flip(), self._fpga.ethernet, "phy_"),
            **{f"io_pads_{name}": getattr(chip, pin).io for name, pin in NETWORK_PADS.items()},
        )


def ecpix5(generated: Generated) -> BoardDesign:
    """The board with a generated accelerator, whose Verilog is taken as it was written."""
    board = generated.board
    clocks = {"sync": board.clock_mhz, DOMAIN: clock_mhz(board.memory), "init": INIT_MHZ}
    network = {}
    if board.ethernet is not None:
        clocks |= {NETWORK: NETWORK_MHZ, ETHERNET: ETHERNET_MHZ}
        network = {
            f"{liteeth_core.CORE_MODULE}.v": liteeth_core.core_verilog(board.ethernet),
            f"{liteeth_core.PHY_MODULE}.v": liteeth_core.phy_verilog(),
        }
    design = for_platform(Ecpix5(board, generated.arch), ECPIX585Platform(), clocks)
    sources = {
        **design.sources,
        **network,
        VERILOG: generated.verilog,
        f"{CONTROLLER_MODULE}.v": controller_verilog(board.memory),
        f"{PHY_MODULE}.v": phy_verilog(board.memory),
    }
    constraints = design.constraints + (STRAPS if board.ethernet is not None else "")
    return dataclasses.replace(design, sources=sources, constraints=constraints, places=floorplan(generated.arch))
