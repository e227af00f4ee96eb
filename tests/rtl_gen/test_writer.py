"""The writer: words land where they should, whatever the bus does, and nothing else is touched."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, RisingEdge

from moe_hw.arch import SEGMENT_ALIGN, Arch
from rtl_gen.bus import range_layout
from rtl_gen.writer import Writer
from sim.bench import streams
from sim.bench.memory import serve_writes
from sim.bench.runner import parameter, run_bench

MEMORY_UNITS = 64


def sizes(data_bits: int, lanes: int) -> Arch:
    return Arch(columns=64, data_bits=data_bits, lanes=lanes, burst_bytes=256)


def bench_arch() -> Arch:
    return sizes(int(parameter("data_bits")), int(parameter("lanes")))


async def write(dut, arch: Arch, memory: bytearray, counts: list[int], idle: streams.Pattern) -> None:
    """Write ranges of ``counts`` bus words, in order; later ones may lie over earlier ones."""
    value_bits, word_bytes = 32 * arch.lanes, arch.data_bits // 8
    ranges, values = [], []
    expected = bytearray(memory)
    for count in counts:
        address = random.randrange(MEMORY_UNITS - -(-count * word_bytes // SEGMENT_ALIGN))
        ranges.append({"address": address, "words": count})
        data = random.randbytes(count * word_bytes)
        expected[address * SEGMENT_ALIGN : address * SEGMENT_ALIGN + len(data)] = data
        values += [int.from_bytes(data[at : at + value_bits // 8], "little")
                   for at in range(0, len(data), value_bits // 8)]  # fmt: skip
    offering = cocotb.start_soon(streams.send(dut, "ranges", range_layout(arch), ranges, idle))
    try:
        await streams.send(dut, "values", value_bits, values, idle)
        await offering
        while int(dut.busy.value):
            await RisingEdge(dut.clk)
        assert memory == expected
    finally:
        offering.cancel()


async def begin(dut) -> Arch:
    for name in ("ranges__valid", "values__valid", "clear", "awready", "wready", "bvalid"):
        getattr(dut, name).value = 0
    await streams.start(dut)
    return bench_arch()


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def ranges_in_a_row(dut, idle, stall):
    """One word, odd counts, several bursts, starts that are not on a burst's boundary."""
    arch = await begin(dut)
    memory = bytearray(random.randbytes(MEMORY_UNITS * SEGMENT_ALIGN))
    cocotb.start_soon(serve_writes(dut, arch, memory, streams.PATTERNS[stall]))
    word_bytes = arch.data_bits // 8
    counts = [count for count in (1, 2, 3, 16, 31, 65, 200, 333) if count * word_bytes < 2048]
    random.shuffle(counts)
    await write(dut, arch, memory, counts, streams.PATTERNS[idle])
    assert int(dut.error.value) == 0


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def latency_and_throughput(dut):
    """Four cycles to the address, then a value a cycle, less two cycles for each burst."""
    arch = await begin(dut)
    dut.awready.value = dut.wready.value = 1
    bursts, word_bytes = 4, arch.data_bits // 8
    count = bursts * arch.burst_bytes // word_bytes
    dut.values__valid.value = 1
    await streams.send(dut, "ranges", range_layout(arch), [{"address": 0, "words": count}])
    cycles = 1
    while not int(dut.awvalid.value):
        await RisingEdge(dut.clk)
        cycles += 1
    assert cycles == 5
    words = 0
    while words < count:
        await RisingEdge(dut.clk)
        cycles += 1
        words += int(dut.wvalid.value)
    assert cycles - 4 <= count * word_bytes // 4 // arch.lanes + 2 * bursts


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def an_error_answer_is_kept_until_cleared(dut):
    arch = await begin(dut)
    memory = bytearray(MEMORY_UNITS * SEGMENT_ALIGN)
    cocotb.start_soon(serve_writes(dut, arch, memory, response=2))
    await write(dut, arch, memory, [20], streams.always)
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
    arch = await begin(dut)
    memory = bytearray(random.randbytes(MEMORY_UNITS * SEGMENT_ALIGN))
    for number in range(10):
        serving = cocotb.start_soon(serve_writes(dut, arch, memory, streams.PATTERNS["bursts"], 2 * (number % 2)))
        writing = cocotb.start_soon(write(dut, arch, memory, [30, 3, 25], streams.always))
        await ClockCycles(dut.clk, random.randint(1, 300))
        serving.cancel()
        await streams.interrupt(dut, writing, "ranges__valid", "values__valid", "awready", "wready", "bvalid")
        assert int(dut.busy.value) == int(dut.error.value) == 0
        serving = cocotb.start_soon(serve_writes(dut, arch, memory))
        await write(dut, arch, memory, [random.randint(1, 30)], streams.always)
        assert int(dut.error.value) == 0
        serving.cancel()


@pytest.mark.parametrize(("data_bits", "lanes"), [(32, 1), (64, 1), (64, 2), (512, 4)])
def test_writer(data_bits: int, lanes: int) -> None:
    run_bench(Writer(sizes(data_bits, lanes)), __name__, data_bits=data_bits, lanes=lanes)
