"""Bursts cover their range, in order, and cross no boundary."""

import random

import cocotb
import pytest

from moe_hw.arch import SEGMENT_ALIGN, Arch
from rtl_gen.bursts import Bursts
from rtl_gen.bus import burst_layout, range_layout
from sim.bench import streams
from sim.bench.runner import parameter, run_bench


def sizes(data_bits: int) -> Arch:
    return Arch(columns=16, data_bits=data_bits, burst_bytes=256)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def bursts_cover_their_range(dut, idle, stall):
    arch = sizes(int(parameter("data_bits")))
    word_bytes = arch.data_bits // 8
    ranges = [{"address": random.randrange(20), "words": words} for words in (1, 2, 5, 0, 64, 3, 7, 100)]
    wanted = [
        entry["address"] * SEGMENT_ALIGN + word * word_bytes for entry in ranges for word in range(entry["words"])
    ]
    await streams.start(dut)
    cocotb.start_soon(streams.send(dut, "ranges", range_layout(arch), ranges, streams.PATTERNS[idle]))
    covered = []
    while len(covered) < len(wanted):
        (burst,) = await streams.receive(dut, "bursts", burst_layout(arch), 1, streams.PATTERNS[stall])
        addresses = [burst["address"] + word * word_bytes for word in range(burst["length"] + 1)]
        assert addresses[0] // arch.burst_bytes == addresses[-1] // arch.burst_bytes
        covered += addresses
    assert covered == wanted


@pytest.mark.parametrize("data_bits", [32, 512])
def test_bursts(data_bits: int) -> None:
    run_bench(Bursts(sizes(data_bits)), __name__, data_bits=data_bits)
