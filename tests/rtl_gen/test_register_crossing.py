"""AXI4-Lite accesses to registers in another clock, whatever holds up the bus, at clocks of any ratio."""

from __future__ import annotations

import random

import cocotb
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, Timer
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from moe_hw.ddr3 import REGISTERS_ADDR_BITS
from rtl_gen.bus import AXI4Lite
from rtl_gen.dfi import RegisterBus
from rtl_gen.register_crossing import RegisterCrossing
from sim.bench import streams
from sim.bench.axi import pause
from sim.bench.runner import run_bench
from sim.clocks import clock_domains

WORDS = 1 << REGISTERS_ADDR_BITS - 2
DOMAIN = "other"


class Board(wiring.Component):
    """The block with its clocks as ports."""

    def __init__(self):
        clocks = {name: In(1) for name in ("clk", "rst", "other_clk", "other_rst")}
        super().__init__({**clocks, "axil": In(AXI4Lite(REGISTERS_ADDR_BITS)), "bus": Out(RegisterBus())})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        clock_domains(m, {"sync": (self.clk, self.rst), DOMAIN: (self.other_clk, self.other_rst)})
        m.submodules.crossing = crossing = RegisterCrossing(DOMAIN)
        connect(m, flipped(self.axil), crossing.axil)
        connect(m, crossing.bus, flipped(self.bus))
        return m


async def serve(dut, registers: list[int]) -> None:
    """Registers as LiteX has them: what is read comes in the next clock, and only then."""
    found = 0
    while True:
        await RisingEdge(dut.other_clk)
        dut.bus__dat_r.value = found
        await ReadOnly()
        found = 0
        address = int(dut.bus__adr.value)
        if int(dut.bus__we.value):
            registers[address] = int(dut.bus__dat_w.value)
        elif int(dut.bus__re.value):
            found = registers[address]


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(pattern=list(streams.PATTERNS), other_ps=[3_000, 10_000, 31_000])
async def random_accesses(dut, pattern, other_ps):
    master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "axil_"), dut.clk, dut.rst)
    pause(master, streams.PATTERNS[pattern])
    registers = [random.getrandbits(32) for _ in range(WORDS)]
    expected = registers.copy()
    dut.bus__dat_r.value = 0
    Clock(dut.clk, 12_500, unit="ps").start()
    await Timer(random.randrange(2, 10_000, 2), unit="ps")
    Clock(dut.other_clk, other_ps, unit="ps").start()
    dut.rst.value = dut.other_rst.value = 1
    await ClockCycles(dut.clk, 12)
    dut.rst.value = dut.other_rst.value = 0
    serving = cocotb.start_soon(serve(dut, registers))
    for _ in range(60):
        word = random.randrange(WORDS)
        if random.random() < 0.5:
            expected[word] = random.getrandbits(32)
            await master.write_dword(4 * word, expected[word])
        else:
            assert await master.read_dword(4 * word) == expected[word]
    assert registers == expected
    serving.cancel()


def test_register_crossing() -> None:
    run_bench(Board(), __name__)
