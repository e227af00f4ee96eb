"""The read arbiter: every word once, in order, to the reader that asked."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.bus import burst_layout, word_layout
from rtl_gen.read_arbiter import ReadArbiter
from sim.bench import streams
from sim.bench.runner import parameter, run_bench

READERS = 3


def sizes(data_bits: int) -> Arch:
    return Arch(columns=16, data_bits=data_bits, burst_bytes=256)


async def answer(dut, arch: Arch, pattern: streams.Pattern) -> None:
    """An in-order AXI4 memory whose words are their own addresses; addresses of 3 mod 7 words are errors."""
    word_bytes = arch.data_bits // 8
    queue: list[tuple[int, bool]] = []
    active = pattern()
    offered = False
    while True:
        dut.arready.value = int(next(active))
        if not offered:
            offered = bool(queue) and next(active)
        dut.rvalid.value = int(offered)
        if offered:
            address, last = queue[0]
            dut.rdata.value, dut.rlast.value = address, int(last)
            dut.rresp.value = 2 if address // word_bytes % 7 == 3 else 0
        await streams.ReadOnly()
        if offered and int(dut.rready.value):
            queue.pop(0)
            offered = False
        if int(dut.arvalid.value) and int(dut.arready.value):
            length = int(dut.arlen.value)
            first = int(dut.araddr.value)
            queue += [(first + word * word_bytes, word == length) for word in range(length + 1)]
        await RisingEdge(dut.clk)


INPUTS = (
    "arready",
    "rvalid",
    *(f"bursts_{reader}__valid" for reader in range(READERS)),
    *(f"words_{reader}__ready" for reader in range(READERS)),
)
"""What offers something to the arbiter or takes something from it."""


async def begin(dut) -> Arch:
    for name in INPUTS:
        getattr(dut, name).value = 0
    await streams.start(dut)
    return sizes(int(parameter("data_bits")))


async def read(dut, arch: Arch, number: int, idle: streams.Pattern, stall: streams.Pattern) -> None:
    """Bursts of one reader, and that it gets their words."""
    word_bytes = arch.data_bits // 8
    bursts = [{"address": random.randrange(1000) * word_bytes, "length": random.choice((0, 1, 3))} for _ in range(20)]
    wanted = [burst["address"] + word * word_bytes for burst in bursts for word in range(burst["length"] + 1)]
    sending = cocotb.start_soon(streams.send(dut, f"bursts_{number}", burst_layout(arch), bursts, idle))
    try:
        got = await streams.receive(dut, f"words_{number}", word_layout(arch), len(wanted), stall)
    finally:
        sending.cancel()
    assert [word["data"] for word in got] == wanted
    assert [word["error"] for word in got] == [int(address // word_bytes % 7 == 3) for address in wanted]


async def read_all(dut, arch: Arch, idle: streams.Pattern, stall: streams.Pattern) -> None:
    """All readers at once."""
    memory = cocotb.start_soon(answer(dut, arch, stall))
    readers = [cocotb.start_soon(read(dut, arch, number, idle, stall)) for number in range(READERS)]
    try:
        for reader in readers:
            await reader
        await ClockCycles(dut.clk, 3)
        assert int(dut.idle.value) == 1
    finally:
        for task in (memory, *readers):
            task.cancel()


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def each_reader_gets_its_own(dut, idle, stall):
    await read_all(dut, await begin(dut), streams.PATTERNS[idle], streams.PATTERNS[stall])


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def reset_in_flight(dut):
    """With requests and data outstanding; the memory is reset, too."""
    arch = await begin(dut)
    for _ in range(8):
        working = cocotb.start_soon(read_all(dut, arch, streams.always, streams.PATTERNS["sometimes"]))
        await ClockCycles(dut.clk, random.randint(1, 150))
        await streams.interrupt(dut, working, *INPUTS)
        assert int(dut.idle.value) == 1
        await read_all(dut, arch, streams.always, streams.always)


@pytest.mark.parametrize("data_bits", [32, 512])
def test_read_arbiter(data_bits: int) -> None:
    run_bench(ReadArbiter(sizes(data_bits), READERS), __name__, data_bits=data_bits)
