"""The sorted chain against sorted()."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadWrite, RisingEdge

from moe_hw.arch import ACC_BITS
from rtl_gen.topk import LATENCY, TopK, entry_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, Pattern, pack, reset, start

INDEX_BITS = 9
LOWEST = -(1 << ACC_BITS - 1)


@pytest.mark.parametrize("size", [1, 2, 12])
def test_topk(size: int) -> None:
    run_bench(TopK(size, ACC_BITS, INDEX_BITS), __name__, size=size)


async def insert(dut: Any, keys: list[int], pattern: Pattern) -> None:
    dut.clear.value = 1
    dut.valid.value = 0
    await RisingEdge(dut.clk)
    dut.clear.value = 0
    active = pattern()
    for index, key in enumerate(keys):
        dut.valid.value = 0
        while not next(active):
            await RisingEdge(dut.clk)
        dut.valid.value = 1
        dut.entry.value = pack(entry_layout(ACC_BITS, INDEX_BITS), {"key": key, "index": index})
        await RisingEdge(dut.clk)
    dut.valid.value = 0


async def take(dut: Any, count: int, pattern: Pattern) -> list[int]:
    """Indices from the first place on, each as soon as it is right."""
    active = pattern()
    indices = []
    await ClockCycles(dut.clk, LATENCY - 1)
    for place in range(count):
        while not next(active):
            await RisingEdge(dut.clk)
        dut.place.value = place
        await RisingEdge(dut.clk)
        await ReadWrite()
        indices.append(int(dut.index.value))
    return indices


async def check(dut: Any, keys: list[int], pattern: Pattern = PATTERNS["always"]) -> None:
    size = int(parameter("size"))
    await insert(dut, keys, pattern)
    expected = sorted(range(len(keys)), key=lambda index: (-keys[index], index))[:size]
    assert await take(dut, len(expected), pattern) == expected
    assert dut.largest.value.to_signed() == max(keys)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(pattern=list(PATTERNS))
async def random_sequences(dut: Any, pattern: str) -> None:
    await start(dut)
    for _ in range(30):
        width = random.choice([1, 2, 4, 48])
        keys = [random.getrandbits(48) - (1 << 47) >> 48 - width for _ in range(random.randint(1, 40))]
        await check(dut, keys, PATTERNS[pattern])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def extremes(dut: Any) -> None:
    """Keys of the lowest value, ties throughout, ascending and descending sequences."""
    await start(dut)
    await check(dut, [LOWEST])
    await check(dut, [LOWEST] * 20)
    await check(dut, [LOWEST, -LOWEST - 1] * 10)
    await check(dut, list(range(-20, 20)))
    await check(dut, list(range(20, -20, -1)))
    await check(dut, [5] * 512)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await start(dut)
    for _ in range(5):
        sender = cocotb.start_soon(insert(dut, list(range(100)), PATTERNS["bursts"]))
        await ClockCycles(dut.clk, random.randint(2, 40))
        sender.cancel()
        await reset(dut)
        await check(dut, [random.randrange(8) for _ in range(20)])
