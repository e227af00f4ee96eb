"""The ULX3S: every pin that it needs, the clocks, and the accelerator as it was generated."""

from __future__ import annotations

import dataclasses
import re

import pytest

from boards import Ethernet, Timing, load_board
from moe_hw.errors import UsageError
from moe_hw.fit import arch_of
from moe_hw.generated import VERILOG, Generated
from rtl_gen.board_design import TOP, BoardDesign
from rtl_gen.ulx3s import SDRAM_MHZ, ulx3s

BOARD = load_board("ulx3s-85f")


@pytest.fixture(scope="module")
def design() -> BoardDesign:
    return ulx3s(Generated(arch_of(BOARD), BOARD, "module moe_hw; endmodule"))


def test_pins(design: BoardDesign) -> None:
    located = dict(re.findall(r'LOCATE COMP "(.*)" SITE "(.*)";', design.constraints))
    ports = {re.sub(r"__io(?=$|\[)", "", name): pin for name, pin in located.items()}
    # As in the project's own constraints, github.com/emard/ulx3s: what the FTDI chip sends arrives at M1.
    expected = {"clk25_0": "G2", "uart_0__rx": "M1", "uart_0__tx": "L4", "led_0": "B2", "led_1": "C2"}
    assert expected.items() <= ports.items()
    assert ports["sdram_0__clk"] == "F19" and ports["esp32_0__gpio0"] == "L2"
    assert len([name for name in ports if name.startswith("sdram_0__")]) == 39
    assert len(ports) == len(expected) + 39 + 1


def test_clocks(design: BoardDesign) -> None:
    assert design.clocks == {"sync": 80.0, "sdram": SDRAM_MHZ}
    assert re.findall(r"FREQUENCY .*", design.constraints) == ['FREQUENCY PORT "clk25_0__io" 25000000.0 HZ;']
    pll = re.search(r"cell \\EHXPLLL .*?\n  end", design.sources[f"{TOP}.il"], re.DOTALL)
    assert pll is not None


def test_the_accelerator_is_the_generated_one(design: BoardDesign) -> None:
    assert design.sources[VERILOG] == "module moe_hw; endmodule"
    assert r"cell \moe_hw " in design.sources[f"{TOP}.il"]
    assert design == ulx3s(Generated(arch_of(BOARD), BOARD, "module moe_hw; endmodule"))


def test_times_of_the_memory_are_as_many_clocks_as_in_the_board_file() -> None:
    """The refresh interval is what may be shorter: it is counted in clocks of the board file."""
    memory = BOARD.memory
    faster = dataclasses.replace(memory, mt_per_s=SDRAM_MHZ)
    for field in dataclasses.fields(Timing):
        time = getattr(memory.timing, field.name)
        if field.name != "tREFI":
            assert memory.clocks(time) == faster.clocks(time), field.name


def test_a_place_in_the_network_is_refused() -> None:
    board = dataclasses.replace(BOARD, ethernet=Ethernet("02:00:00:00:00:01", "10.0.0.1"))
    with pytest.raises(UsageError, match="ulx3s-85f: ethernet: expected no such key, .* remove it"):
        ulx3s(Generated(arch_of(board), board, "module moe_hw; endmodule"))
