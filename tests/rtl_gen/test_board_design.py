"""A board's design: pins, their types and clocks as ``amaranth_boards`` has them, blocks emitted once."""

import re
from typing import Any

from amaranth.hdl import Elaboratable, Module, Signal
from amaranth.lib import io
from amaranth.lib.memory import Memory
from amaranth_boards.ecpix5 import ECPIX585Platform

from rtl_gen.board_design import for_platform
from tests.rtl_gen.stand_in import CLOCKS, stand_in


class Blank(Elaboratable):
    """A memory without contents, and no clock of its own."""

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(shape=32, depth=4096, init=[])
        read, write = memory.read_port(), memory.write_port()
        count = Signal(12)
        m.d.sync += count.eq(count + read.data[0])
        m.d.comb += [read.addr.eq(count), write.addr.eq(count), write.data.eq(count), write.en.eq(1)]
        m.submodules.led = led = io.Buffer("o", platform.request("rgb_led", 0, dir="-").r)
        m.d.comb += led.o.eq(read.data[0])
        return m


def test_pins_are_those_of_the_board() -> None:
    design = stand_in()
    assert design.device == ("--85k", "--package", "CABGA381", "--speed", "6")
    assert design.clocks == CLOCKS
    located = dict(re.findall(r'LOCATE COMP "(.*)" SITE "(.*)";', design.constraints))
    ports = {re.sub(r"__io(?=$|\[)", "", name): pin for name, pin in located.items()}
    assert ports["clk25_0"] == "G2" and ports["led_0"] == "B2" and ports["sdram_0__clk"] == "F19"
    assert ports["sdram_0__dq[0]"] == "J16" and len([name for name in ports if "dq[" in name]) == 16
    types = dict(re.findall(r'IOBUF PORT "(.*)" (.*);', design.constraints))
    assert types.keys() == located.keys()
    assert all("IO_TYPE=LVCMOS33" in text for text in types.values())
    assert re.findall(r"FREQUENCY .*", design.constraints) == ['FREQUENCY PORT "clk25_0__io" 25000000.0 HZ;']


def test_repeated_blocks_are_emitted_beside_the_design() -> None:
    design = stand_in()
    assert sorted(design.sources) == ["square.v", "top.il"]
    assert "module square(" in design.sources["square.v"]
    assert r"module \top" in design.sources["top.il"] and "cell \\square" in design.sources["top.il"]
    assert design == stand_in()
    assert r"attribute \src" not in design.sources["top.il"]  # lines and paths of this checkout


def test_another_board_has_another_device_and_blank_memories_stay_blank() -> None:
    design = for_platform(Blank(), ECPIX585Platform(), {"sync": 100.0})
    assert design.device == ("--um5g-85k", "--package", "CABGA554", "--speed", "8")
    assert "cell $mem_v2" in design.sources["top.il"] or "cell $memrd" in design.sources["top.il"]
    assert "cell $meminit" not in design.sources["top.il"]
