"""Queues of any length against division in Python, in the declared cycles."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.split import Split
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import reset, start

ARCHES = {
    "one_slot": Arch(max_tokens=4, slots=1),
    "large": Arch(max_tokens=512, slots=32),
}


@pytest.mark.parametrize("arch", list(ARCHES))
def test_split(arch: str) -> None:
    run_bench(Split(ARCHES[arch]), __name__, arch=arch)


async def begin(dut: Any, count: int, slots: int) -> None:
    dut.count.value, dut.slots.value, dut.start.value = count, slots, 1
    await RisingEdge(dut.clk)
    dut.start.value = 0


async def check(dut: Any, count: int, slots: int) -> None:
    """Fewest parts, none above ``slots``, sizes that differ by one at most; for as long as there is no new start."""
    await begin(dut, count, slots)
    cycles = 1
    await ReadOnly()
    while not int(dut.done.value):
        cycles += 1
        assert cycles < 2 * count + 10, "not done"
        await RisingEdge(dut.clk)
        await ReadOnly()
    await ClockCycles(dut.clk, random.randint(1, 3))
    await ReadOnly()
    parts, base, extra = int(dut.parts.value), int(dut.base.value), int(dut.extra.value)
    sizes = [base + 1] * extra + [base] * (parts - extra)
    assert parts == -(-count // slots) and extra < parts, f"{count} in parts of {slots}: {parts}, {extra} larger"
    assert sum(sizes) == count and max(sizes) <= slots, f"{count} in parts of {slots}: {sizes}"
    assert int(dut.done.value)
    assert cycles == (2 if parts == 1 else 2 + parts + base), f"{count} in parts of {slots}"
    await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def small_queues(dut: Any) -> None:
    """Every queue of up to 40, in parts of every small size."""
    arch = ARCHES[parameter("arch")]
    dut.start.value = 0
    await start(dut)
    for count in range(1, min(arch.max_tokens, 40) + 1):
        for slots in range(1, min(arch.slots, 9) + 1):
            await check(dut, count, slots)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def queues_at_the_limits(dut: Any) -> None:
    """Whole parts, one more and one fewer, up to the largest batch."""
    arch = ARCHES[parameter("arch")]
    dut.start.value = 0
    await start(dut)
    await check(dut, arch.max_tokens, 1)
    for _ in range(40):
        slots = random.choice([arch.slots, random.randint(1, arch.slots)])
        near = slots * random.randint(1, arch.max_tokens // slots) + random.choice([-1, 0, 1])
        await check(dut, min(arch.max_tokens, max(1, near)), slots)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    arch = ARCHES[parameter("arch")]
    dut.start.value = 0
    await start(dut)
    for _ in range(8):
        await begin(dut, arch.max_tokens, random.randint(1, arch.slots))
        await ClockCycles(dut.clk, random.randint(1, 30))
        await reset(dut)
        await check(dut, random.randint(1, arch.max_tokens), random.randint(1, arch.slots))
