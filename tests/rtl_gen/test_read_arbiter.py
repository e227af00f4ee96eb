"""The read arbiter: every word once, in order, to the reader that asked."""

import random

import cocotb
import pytest
from cocotb.triggers import RisingEdge

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


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def each_reader_gets_its_own(dut, idle, stall):
    arch = sizes(int(parameter("data_bits")))
    word_bytes = arch.data_bits // 8
    for reader in range(READERS):
        getattr(dut, f"bursts_{reader}__valid").value = 0
        getattr(dut, f"words_{reader}__ready").value = 0
    await streams.start(dut)
    cocotb.start_soon(answer(dut, arch, streams.PATTERNS[stall]))

    async def reader(number: int) -> None:
        bursts = [
            {"address": random.randrange(1000) * word_bytes, "length": random.choice((0, 1, 3))} for _ in range(20)
        ]
        wanted = [
            burst["address"] + word * word_bytes for burst in bursts for word in range(burst["length"] + 1)
        ]
        cocotb.start_soon(streams.send(dut, f"bursts_{number}", burst_layout(arch), bursts, streams.PATTERNS[idle]))
        got = await streams.receive(
            dut, f"words_{number}", word_layout(arch), len(wanted), streams.PATTERNS[stall]
        )
        assert [word["data"] for word in got] == wanted
        assert [word["error"] for word in got] == [int(address // word_bytes % 7 == 3) for address in wanted]

    tasks = [cocotb.start_soon(reader(number)) for number in range(READERS)]
    for task in tasks:
        await task
    for _ in range(3):
        await RisingEdge(dut.clk)
    assert int(dut.idle.value) == 1


@pytest.mark.parametrize("data_bits", [32, 512])
def test_read_arbiter(data_bits: int) -> None:
    run_bench(ReadArbiter(sizes(data_bits), READERS), __name__, data_bits=data_bits)
