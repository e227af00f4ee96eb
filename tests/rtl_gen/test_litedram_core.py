"""What LiteDRAM makes of a board's memory: its registers, its times and the mode registers, as the host knows them."""

from __future__ import annotations

import re

import pytest
from litedram.init import get_ddr3_phy_init_sequence

from boards import load_board
from moe_hw.ddr3 import BITSLIPS, CONTROLLER, DELAYS, PHASES, PHY, mode_registers
from rtl_gen import litedram_core
from rtl_gen.litedram_core import controller_verilog, latencies, phy_verilog

MEMORY = load_board("ecpix5-85f").memory


@pytest.mark.parametrize(("module", "names"), [(litedram_core._Controller, CONTROLLER), (litedram_core._Phy, PHY)])
def test_registers_are_where_the_host_looks_for_them(module: type, names: tuple[str, ...]) -> None:
    built = module(MEMORY)
    built.finalize()
    found = [re.sub(r"(?<=data)([01])$|0$", _half, register.name) for register in built.bank.simple_csrs]
    assert found == [name.removeprefix("dfii_") for name in names]


def _half(digit: re.Match[str]) -> str:
    """LiteX numbers the words of a register; one word alone is number 0."""
    return {"1": "_high", "0": "_low"}.get(digit[1] or "", "")


def test_the_text_depends_on_the_memory_alone() -> None:
    for make, name in ((controller_verilog, "dram_controller"), (phy_verilog, "dram_phy")):
        text = make(MEMORY)
        assert text == make(MEMORY)
        assert f"module {name}(" in text


def test_data_pins_are_bidirectional() -> None:
    text = phy_verilog(MEMORY)
    assert "inout [15:0] pads_dq," in text and "inout [1:0] pads_dqs_p," in text


def test_clock_enable_is_low_until_the_host_says_so() -> None:
    assert "reg [3:0] core_storage = 4'd0;" in controller_verilog(MEMORY)


def test_mode_registers_are_those_of_litedram() -> None:
    settings, timing = litedram_core._settings(MEMORY), litedram_core._timing(MEMORY)
    sequence, _ = get_ddr3_phy_init_sequence(settings, timing)
    expected = [(bank, address) for text, address, bank, _, _ in sequence if text.startswith("Load Mode Register")]
    assert list(mode_registers(MEMORY)) == expected


def test_what_the_phy_says_about_itself() -> None:
    settings = litedram_core._settings(MEMORY)
    assert (settings.nphases, settings.bitslips, settings.delays) == (PHASES, BITSLIPS, DELAYS)
    assert (settings.rdphase, settings.wrphase) == (0, 1)
    assert latencies(MEMORY) == (13, 3)


def test_times_are_rounded_up_to_clocks_of_the_controller() -> None:
    """With a clock of the chip to spare where the second command may come in the earlier phase."""
    timing = litedram_core._timing(MEMORY)
    clocks = {name: getattr(timing, name) for name in ("tRP", "tRCD", "tRAS", "tRC", "tWR", "tFAW", "tRFC", "tREFI")}
    assert clocks == {"tRP": 2, "tRCD": 2, "tRAS": 4, "tRC": 5, "tWR": 2, "tFAW": 5, "tRFC": 24, "tREFI": 702}
    assert (timing.tRRD, timing.tCCD, timing.tWTR, timing.tZQCS) == (2, 2, 2, 32)


def test_its_memories_are_read_without_a_clock() -> None:
    """Synthesis takes words that are read while they are written for whatever is cheapest (``ECP5.flow``)."""
    text = controller_verilog(MEMORY) + phy_verilog(MEMORY)
    assert re.search(r"assign \w+ = storage\w*\[", text)
    for register in re.findall(r"(\w+) <= storage\w*\[", text):
        (wire,) = re.findall(rf"assign (\w+) = {register};", text)
        assert len(re.findall(rf"\b{wire}\b", text)) == 2, f"{wire} is declared, assigned and used"
