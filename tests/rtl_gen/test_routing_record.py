"""The routing record of random entries; weights are the float32 of numpy."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.expert_queues import entry_layout
from rtl_gen.routing_record import RoutingRecord
from sim.bench.runner import run_bench
from sim.bench.streams import PATTERNS, pack, receive, reset, start

ARCH = Arch(max_tokens=8, max_experts=16, max_top_k=3)


def test_routing_record() -> None:
    run_bench(RoutingRecord(ARCH), __name__)


def random_entry() -> dict[str, Any]:
    """Exponents around the smallest normal number, and those that softmax gives."""
    exponent = random.choice([-15, -2048, *range(-145, -138), random.randint(-200, -15)])
    mantissa = random.choice([1 << 15, 0xFFFF, random.randint(1 << 15, 0xFFFF)])
    weight = {"mantissa": mantissa, "exponent": exponent, "negative": random.randrange(2)}
    return {"expert": random.randrange(17), "token": random.randrange(8), "weight": weight}


def float_word(weight: dict[str, int]) -> int:
    value = np.float32(np.ldexp(float(weight["mantissa"]), weight["exponent"]) * (-1) ** weight["negative"])
    return int(value.view(np.uint32)) if abs(value) >= np.finfo(np.float32).tiny else 0


async def serve(dut: Any, entries: list[dict[str, Any]]) -> None:
    while True:
        await ReadOnly()
        place = int(dut.place.value)
        await RisingEdge(dut.clk)
        dut.entry.value = pack(entry_layout(ARCH), entries[place % len(entries)])


async def check(dut: Any, count: int, pressure: str) -> None:
    entries = [random_entry() for _ in range(count)]
    server = cocotb.start_soon(serve(dut, entries))
    dut.arrived.value, dut.start.value = count, 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    words = await receive(dut, "words", 32, 2 * count, PATTERNS[pressure])
    assert words == [word for entry in entries for word in (entry["expert"], float_word(entry["weight"]))]
    for _ in range(6):
        await ReadOnly()
        assert not int(dut.words__valid.value)
        await RisingEdge(dut.clk)
    server.cancel()


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(pressure=list(PATTERNS))
async def records(dut: Any, pressure: str) -> None:
    dut.start.value = 0
    await start(dut)
    for count in (1, 2, 7, ARCH.queue_entries):
        await check(dut, count, pressure)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    dut.start.value = 0
    await start(dut)
    for _ in range(6):
        dut.arrived.value, dut.start.value, dut.words__ready.value = 5, 1, 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        await ClockCycles(dut.clk, random.randint(1, 20))
        dut.words__ready.value = 0
        await reset(dut)
        await check(dut, 3, "always")
