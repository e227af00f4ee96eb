"""The writer: words land where they should, whatever the bus does, and nothing else is touched."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, RisingEdge

from moe_hw.arch import SEGMENT_ALIGN, Arch
from rtl_gen.writer import Writer
from sim.bench import streams
from sim.bench.memory import serve_writes
from sim.bench.runner import parameter, run_bench


def sizes(data_bits: int) -> Arch:
    return Arch(columns=16, data_bits=data_bits, burst_bytes=256)


async def write(dut, arch: Arch, memory: bytearray, count: int, idle: streams.Pattern) -> None:
    address = random.randrange(16)
    values = [random.getrandbits(32) for _ in range(count)]
    expected = bytearray(memory)
    data = b"".join(value.to_bytes(4, "little") for value in values)
    expected[address * SEGMENT_ALIGN : address * SEGMENT_ALIGN + len(data)] = data
    dut.address.value, dut.count.value, dut.start.value = address, count, 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    await streams.send(dut, "values", 32, values, idle)
    await RisingEdge(dut.clk)
    while int(dut.busy.value):
        await RisingEdge(dut.clk)
    assert memory == expected


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def ranges(dut, idle, stall):
    """One word, odd counts, several bursts, starts that are not on a burst's boundary."""
    arch = sizes(int(parameter("data_bits")))
    dut.start.value, dut.clear.value = 0, 0
    memory = bytearray(random.randbytes(4096))
    await streams.start(dut)
    cocotb.start_soon(serve_writes(dut, arch, memory, streams.PATTERNS[stall]))
    for count in (1, 2, 3, 16, 31, 64, 65, 200, 333):
        await write(dut, arch, memory, count, streams.PATTERNS[idle])
    assert int(dut.error.value) == 0


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def an_error_answer_is_kept_until_cleared(dut):
    arch = sizes(int(parameter("data_bits")))
    dut.start.value, dut.clear.value = 0, 0
    memory = bytearray(4096)
    await streams.start(dut)
    cocotb.start_soon(serve_writes(dut, arch, memory, response=2))
    await write(dut, arch, memory, 20, streams.always)
    assert int(dut.error.value) == 1
    dut.clear.value = 1
    await RisingEdge(dut.clk)
    dut.clear.value = 0
    await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    assert int(dut.error.value) == 0


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def reset_in_flight(dut):
    """Among addresses, data and answers, errors among them; the memory is reset, too."""
    arch = sizes(int(parameter("data_bits")))
    dut.start.value, dut.clear.value = 0, 0
    memory = bytearray(random.randbytes(4096))
    await streams.start(dut)
    for number in range(10):
        serving = cocotb.start_soon(serve_writes(dut, arch, memory, streams.PATTERNS["bursts"], 2 * (number % 2)))
        writing = cocotb.start_soon(write(dut, arch, memory, 200, streams.always))
        await ClockCycles(dut.clk, random.randint(1, 300))
        serving.cancel()
        await streams.interrupt(dut, writing, "start", "values__valid", "awready", "wready", "bvalid")
        assert int(dut.busy.value) == int(dut.error.value) == 0
        serving = cocotb.start_soon(serve_writes(dut, arch, memory))
        await write(dut, arch, memory, random.randint(1, 100), streams.always)
        assert int(dut.error.value) == 0
        serving.cancel()


@pytest.mark.parametrize("data_bits", [32, 64, 512])
def test_writer(data_bits: int) -> None:
    run_bench(Writer(sizes(data_bits)), __name__, data_bits=data_bits)
