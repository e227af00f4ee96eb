"""The CSRs over AXI4-Lite: every one of the table, and what must be refused."""

import random

import cocotb
from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiResp

from moe_hw.registers import CSRS, csr_address
from rtl_gen.registers import CSR_ADDR_BITS, Registers
from sim.bench import streams
from sim.bench.axi import Csrs
from sim.bench.runner import run_bench


async def begin(dut, pattern: streams.Pattern) -> Csrs:
    csrs = Csrs(dut, "bus_", pattern)
    await streams.start(dut)
    await ClockCycles(dut.clk, 2)
    return csrs


async def check_all(dut, csrs: Csrs) -> None:
    """Random values in all registers: what the host reads and what the members show."""
    values = {csr.name: random.getrandbits(32) for csr in CSRS}
    for csr in CSRS:
        if csr.access == "rw":
            await csrs.write(csr.name, values[csr.name])
        else:
            getattr(dut, csr.name).value = values[csr.name]
    for csr in random.sample(CSRS, len(CSRS)):
        assert await csrs.read(csr.name) == values[csr.name], csr.name
        assert int(getattr(dut, csr.name).value) == values[csr.name]


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(pattern=list(streams.PATTERNS))
async def every_register(dut, pattern):
    await check_all(dut, await begin(dut, streams.PATTERNS[pattern]))


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(pattern=list(streams.PATTERNS))
async def refused_accesses_change_nothing(dut, pattern):
    csrs = await begin(dut, streams.PATTERNS[pattern])
    dut.magic.value = 7
    await csrs.write("tail", 5)
    for address in (csr_address("magic"), 4 * len(CSRS), (1 << CSR_ADDR_BITS) - 4):
        answer = await csrs.master.write(address, bytes(4))
        assert answer.resp == AxiResp.SLVERR, hex(address)
    assert (await csrs.master.write(csr_address("tail"), b"\x09")).resp == AxiResp.SLVERR
    assert (await csrs.master.read(4 * len(CSRS), 4)).resp == AxiResp.SLVERR
    assert await csrs.read("magic") == 7
    assert await csrs.read("tail") == 5


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(pattern=list(streams.PATTERNS))
async def reset_in_flight(dut, pattern):
    """Whatever access is under way, all that the host wrote is zero afterwards and the next access is answered."""
    csrs = await begin(dut, streams.PATTERNS[pattern])
    for _ in range(8):
        working = cocotb.start_soon(check_all(dut, csrs))
        await ClockCycles(dut.clk, random.randint(1, 60))
        await streams.interrupt(dut, working)
        await ClockCycles(dut.clk, 2)
        for csr in CSRS:
            if csr.access == "rw":
                assert int(getattr(dut, csr.name).value) == 0, csr.name
        await check_all(dut, csrs)


def test_registers() -> None:
    run_bench(Registers(), __name__)
