"""The ECPIX-5: every pin that it needs, the clocks, the modules of LiteX, the accelerator as it was generated."""

from __future__ import annotations

import dataclasses
import re

import pytest

from boards import load_board
from moe_hw.fit import arch_of
from moe_hw.generated import VERILOG, Generated
from rtl_gen.board_design import TOP, BoardDesign
from rtl_gen.ecpix5 import ecpix5
from rtl_gen.litedram_core import controller_verilog, phy_verilog
from rtl_gen.liteeth_core import core_verilog

BOARD = load_board("ecpix5-85f")


@pytest.fixture(scope="module")
def design() -> BoardDesign:
    return ecpix5(Generated(arch_of(BOARD), BOARD, "module moe_hw; endmodule"))


def test_pins(design: BoardDesign) -> None:
    located = dict(re.findall(r'LOCATE COMP "(.*)" SITE "(.*)";', design.constraints))
    ports = {re.sub(r"__(io|p)(?=$|\[)", "", name): pin for name, pin in located.items()}
    # As in the board's own documents, docs.lambdaconcept.com: what the FTDI chip sends arrives at R26.
    expected = {"clk100_0": "K23", "uart_0__rx": "R26", "uart_0__tx": "R24", "rgb_led_0__g": "R21"}
    assert expected.items() <= ports.items()
    assert (ports["ddr3_0__clk"], ports["ddr3_0__dqs[0]"], ports["ddr3_0__dqs[1]"]) == ("H3", "V4", "V1")
    # Address, bank, three of the command, clock enable, termination, clock; data, masks, strobes.
    assert len([name for name in ports if name.startswith("ddr3_0__")]) == 15 + 3 + 3 + 1 + 1 + 1 + 16 + 2 + 2
    # github.com/litex-hub/litex-boards has the same for the Ethernet chip.
    expected = {"rst": "C13", "tx_clk": "A12", "tx_data[0]": "D8", "rx_clk": "E11", "rx_ctrl": "A11"}
    assert {f"eth_rgmii_0__{name}": pin for name, pin in expected.items()}.items() <= ports.items()
    for pin in range(4):
        assert f'PORT "eth_rgmii_0__rx_data__io[{pin}]" PULLMODE=UP;' in design.constraints
    assert len(ports) == 3 + 6 + 44 + 13


def test_a_board_without_a_place_in_the_network_has_none() -> None:
    board = dataclasses.replace(BOARD, ethernet=None)
    design = ecpix5(Generated(arch_of(board), board, "module moe_hw; endmodule"))
    assert "eth_rgmii" not in design.constraints and not {"network", "ethernet"} & design.clocks.keys()
    assert not any("ethernet" in name for name in design.sources)


def test_no_negative_pin_of_a_pair_is_located(design: BoardDesign) -> None:
    """The FPGA's pads take it from the positive one's type."""
    assert "__n" not in design.constraints
    assert 'IOBUF PORT "ddr3_0__dqs__p[0]" IO_TYPE=SSTL15D_I' in design.constraints


def test_clocks(design: BoardDesign) -> None:
    assert design.clocks == {"sync": 80.0, "dram": 90.0, "init": 24.0, "network": 66.0, "ethernet": 125.0}
    assert re.findall(r"FREQUENCY .*", design.constraints) == ['FREQUENCY PORT "clk100_0__io" 100000000.0 HZ;']
    text = design.sources[f"{TOP}.il"]
    for cell in ("EHXPLLL", "ECLKSYNCB", "CLKDIVF"):
        assert rf"cell \{cell} " in text


def test_the_modules_are_the_generated_ones(design: BoardDesign) -> None:
    assert design.sources[VERILOG] == "module moe_hw; endmodule"
    assert design.sources["dram_controller.v"] == controller_verilog(BOARD.memory)
    assert design.sources["dram_phy.v"] == phy_verilog(BOARD.memory)
    assert design.sources["ethernet_core.v"] == core_verilog(BOARD.ethernet)
    for module in ("moe_hw", "dram_controller", "dram_phy", "ethernet_core", "ethernet_phy"):
        assert rf"cell \{module} " in design.sources[f"{TOP}.il"]
    assert design == ecpix5(Generated(arch_of(BOARD), BOARD, "module moe_hw; endmodule"))


def test_every_port_of_foreign_modules_is_connected(design: BoardDesign) -> None:
    """But for what the chip of this board has no pins for, and the reset of a clock without flip-flops."""
    text = design.sources[f"{TOP}.il"]
    for module in ("dram_controller", "dram_phy", "ethernet_core", "ethernet_phy"):
        header = re.search(rf"module {module}\((.*?)\);", design.sources[f"{module}.v"], re.DOTALL)
        cell = re.search(rf"cell \\{module} .*?\n  end", text, re.DOTALL)
        assert header is not None and cell is not None
        ports = set(re.findall(r"(\w+)(?:,|$)", header[1], re.MULTILINE))
        connected = set(re.findall(r"connect \\(\w+) ", cell[0]))
        assert connected <= ports
        assert {name for name in ports - connected if not name.endswith("act_n")} <= {"sys2x_rst"}
