"""Bursts cover their range, in order, and cross no boundary."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles

from moe_hw.arch import SEGMENT_ALIGN, Arch
from rtl_gen.bursts import Bursts
from rtl_gen.bus import burst_layout, range_layout
from sim.bench import streams
from sim.bench.runner import parameter, run_bench


def sizes(data_bits: int) -> Arch:
    return Arch(columns=16, data_bits=data_bits, burst_bytes=256)


async def check(dut, arch: Arch, idle: streams.Pattern, stall: streams.Pattern) -> None:
    """Send ranges of all sizes and follow their bursts."""
    word_bytes = arch.data_bits // 8
    ranges = [{"address": random.randrange(20), "words": words} for words in (1, 2, 5, 0, 64, 3, 7, 100)]
    wanted = [
        entry["address"] * SEGMENT_ALIGN + word * word_bytes for entry in ranges for word in range(entry["words"])
    ]
    sending = cocotb.start_soon(streams.send(dut, "ranges", range_layout(arch), ranges, idle))
    covered = []
    try:
        while len(covered) < len(wanted):
            (burst,) = await streams.receive(dut, "bursts", burst_layout(arch), 1, stall)
            addresses = [burst["address"] + word * word_bytes for word in range(burst["length"] + 1)]
            assert addresses[0] // arch.burst_bytes == addresses[-1] // arch.burst_bytes
            covered += addresses
    finally:
        sending.cancel()
    assert covered == wanted


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def bursts_cover_their_range(dut, idle, stall):
    await streams.start(dut)
    await check(dut, sizes(int(parameter("data_bits"))), streams.PATTERNS[idle], streams.PATTERNS[stall])


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def reset_in_flight(dut):
    arch = sizes(int(parameter("data_bits")))
    await streams.start(dut)
    for _ in range(12):
        working = cocotb.start_soon(check(dut, arch, streams.always, streams.PATTERNS["sometimes"]))
        await ClockCycles(dut.clk, random.randint(1, 40))
        await streams.interrupt(dut, working, "ranges__valid", "bursts__ready")
        await check(dut, arch, streams.always, streams.always)


@pytest.mark.parametrize("data_bits", [32, 512])
def test_bursts(data_bits: int) -> None:
    run_bench(Bursts(sizes(data_bits)), __name__, data_bits=data_bits)
