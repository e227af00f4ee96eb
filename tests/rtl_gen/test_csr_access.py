"""Accesses to CSRs, whatever holds up the bus."""

import random

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteRam

from rtl_gen.csr_access import CsrAccess
from rtl_gen.registers import CSR_ADDR_BITS
from sim.bench import streams
from sim.bench.axi import pause
from sim.bench.runner import run_bench

INPUTS = ("start", "write", "address", "value", "clear")
WORDS = 1 << CSR_ADDR_BITS - 2


async def begin(dut, pattern: streams.Pattern = streams.always) -> AxiLiteRam:
    for name in INPUTS:
        getattr(dut, name).value = 0
    ram = AxiLiteRam(AxiLiteBus.from_prefix(dut, "m_axil_"), dut.clk, dut.rst, size=4 * WORDS)
    pause(ram, pattern)
    await streams.start(dut)
    return ram


async def access(dut, write: bool, word: int, value: int = 0) -> int:
    """One access; what it found."""
    dut.start.value, dut.write.value, dut.address.value, dut.value.value = 1, int(write), 4 * word, value
    await RisingEdge(dut.clk)
    dut.start.value = 0
    dut.write.value, dut.address.value, dut.value.value = int(not write), 0, 0
    while True:
        await ReadOnly()
        if not int(dut.busy.value):
            break
        await RisingEdge(dut.clk)
    found, response = int(dut.found.value), int(dut.response.value)
    await RisingEdge(dut.clk)
    assert response == 0
    return found


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(pattern=list(streams.PATTERNS))
async def random_accesses(dut, pattern):
    await begin(dut, streams.PATTERNS[pattern])
    model = [0] * WORDS
    for _ in range(60):
        word = random.randrange(WORDS)
        if random.random() < 0.5:
            model[word] = random.getrandbits(32)
            await access(dut, True, word, model[word])
        else:
            assert await access(dut, False, word) == model[word]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def clear_ends_an_access_without_an_answer(dut):
    """A slave in reset took the request or did not, and never answers; the late answer of before is no other's."""
    for name in ("awready", "wready", "arready", "bvalid", "rvalid", "bresp", "rresp", "rdata"):
        getattr(dut, f"m_axil__{name}").value = 0
    for name in INPUTS:
        getattr(dut, name).value = 0
    await streams.start(dut)
    for write in (0, 1):
        for ready in (0, 1):
            dut.start.value, dut.write.value = 1, write
            dut.m_axil__awready.value = dut.m_axil__wready.value = dut.m_axil__arready.value = ready
            await RisingEdge(dut.clk)
            dut.start.value = 0
            await ClockCycles(dut.clk, random.randint(2, 30))
            assert int(dut.busy.value) == 1
            dut.clear.value = 1
            await ClockCycles(dut.clk, 2)
            dut.clear.value = 0
            await RisingEdge(dut.clk)
            for name in ("busy", "m_axil__awvalid", "m_axil__wvalid", "m_axil__arvalid"):
                assert int(getattr(dut, name).value) == 0, name


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def errors_and_latency(dut):
    for name in ("awready", "wready", "arready", "bvalid", "rvalid", "rdata"):
        getattr(dut, f"m_axil__{name}").value = 0
    for name in INPUTS:
        getattr(dut, name).value = 0
    await streams.start(dut)
    dut.m_axil__awready.value = dut.m_axil__wready.value = dut.m_axil__arready.value = 1
    for write, response in ((1, 2), (0, 3), (1, 0), (0, 2)):
        valid = dut.m_axil__bvalid if write else dut.m_axil__rvalid
        (dut.m_axil__bresp if write else dut.m_axil__rresp).value = response
        dut.start.value, dut.write.value = 1, write
        await RisingEdge(dut.clk)
        dut.start.value = 0
        await RisingEdge(dut.clk)
        valid.value = 1
        await RisingEdge(dut.clk)
        valid.value = 0
        await ReadOnly()
        assert int(dut.busy.value) == 0 and int(dut.response.value) == response  # three cycles
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut):
    await begin(dut, streams.PATTERNS["bursts"])
    for number in range(10):
        working = cocotb.start_soon(access(dut, bool(number % 2), 3, 5))
        await ClockCycles(dut.clk, random.randint(1, 8))
        await streams.interrupt(dut, working, *INPUTS)
        assert int(dut.busy.value) == 0
        await access(dut, True, 7, number)
        assert await access(dut, False, 7) == number


def test_csr_access() -> None:
    run_bench(CsrAccess(CSR_ADDR_BITS), __name__)
