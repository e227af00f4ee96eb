"""What LiteEth makes of a board's place in the network; that it works is for ``tests/sim/test_ddr3_board.py``."""

from __future__ import annotations

import dataclasses
import re

from boards import Ethernet
from moe_hw.bridge import UDP_PORT
from rtl_gen.liteeth_core import core_verilog, phy_verilog

STATION = Ethernet("02:6d:6f:65:00:01", "192.168.1.50")


def test_the_text_depends_on_the_station_alone() -> None:
    text = core_verilog(STATION)
    assert text == core_verilog(dataclasses.replace(STATION))
    assert "module ethernet_core(" in text
    # As LiteX writes them: decimal.
    for constant in (0x026D6F650001, 0xC0A80132, UDP_PORT):
        assert re.search(rf"\b\d+'d{constant}\b", text), constant
    assert text != core_verilog(dataclasses.replace(STATION, address="192.168.1.51"))


def test_the_phy_has_what_its_pads_need() -> None:
    text = phy_verilog()
    assert text == phy_verilog() and "module ethernet_phy(" in text
    # Control and four data pins in, the same and the clock out.
    assert len(re.findall(r"^IDDRX1F ", text, re.MULTILINE)) == 5
    assert len(re.findall(r"^ODDRX1F ", text, re.MULTILINE)) == 6
