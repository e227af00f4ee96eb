"""Queues of random routes against lists."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.expert_queues import ExpertQueues, entry_layout
from rtl_gen.types import route_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, reset, send, start, unpack

ARCHES = {
    "one_token": Arch(columns=4, max_tokens=1, max_experts=2, max_top_k=1),
    "wide": Arch(columns=32, max_tokens=64, max_experts=512, max_top_k=16),
}


@pytest.mark.parametrize("arch", list(ARCHES))
def test_expert_queues(arch: str) -> None:
    run_bench(ExpertQueues(ARCHES[arch]), __name__, arch=arch)


def random_routes(arch: Arch, experts: int) -> list[dict[str, Any]]:
    """Each token chooses an expert at most once, or none; the shared one is number ``experts``."""
    routes = []
    for token in range(random.randint(1, arch.max_tokens)):
        for expert in random.sample(range(experts + 1), random.randint(1, min(arch.max_top_k, experts) + 1)):
            weight = {"mantissa": random.getrandbits(16), "exponent": random.randint(-2048, 2047), "negative": 1}
            none = int(random.random() < 0.2)
            routes.append({"token": token, "expert": expert, "none": none, "weight": weight, "last": 0})
    routes[-1]["last"] = 1
    return routes


async def clear(dut: Any, experts: int) -> None:
    dut.experts.value, dut.clear.value = experts, 1
    await RisingEdge(dut.clk)
    dut.clear.value = 0


async def port(dut: Any) -> None:
    """A cycle, after which a read port shows what its address of before asked for."""
    await RisingEdge(dut.clk)
    await ReadOnly()


async def check(dut: Any, pattern: str = "always") -> None:
    """Fill the queues, then walk all of them."""
    arch = ARCHES[parameter("arch")]
    experts = random.choice([2, arch.max_experts, random.randint(2, arch.max_experts)])
    routes = random_routes(arch, experts)
    await clear(dut, experts)
    await send(dut, "routes", route_layout(arch), routes, PATTERNS[pattern])
    await port(dut)
    assert int(dut.filled.value)
    await port(dut)
    assert not int(dut.filled.value) and not int(dut.routes__ready.value)
    assert int(dut.arrived.value) == len(routes)
    await RisingEdge(dut.clk)
    for expert in random.sample(range(experts + 1), min(experts + 1, 40)):
        want = [route for route in routes if route["expert"] == expert and not route["none"]]
        dut.expert.value = expert
        await port(dut)
        assert int(dut.count.value) == len(want)
        place = int(dut.head.value)
        await RisingEdge(dut.clk)
        for route in want:
            dut.place.value = place
            await port(dut)
            entry = unpack(entry_layout(arch), int(dut.entry.value))
            assert entry == {"expert": expert, "token": route["token"], "weight": route["weight"]}
            assert routes[place] is route
            place = int(dut.next.value)
            await RisingEdge(dut.clk)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(pattern=list(PATTERNS))
async def batches(dut: Any, pattern: str) -> None:
    dut.clear.value = dut.routes__valid.value = 0
    await start(dut)
    for _ in range(6):
        await check(dut, pattern)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_route_every_third_cycle(dut: Any) -> None:
    dut.clear.value = dut.routes__valid.value = 0
    await start(dut)
    arch = ARCHES[parameter("arch")]
    routes = random_routes(arch, 2)
    await clear(dut, 2)
    cocotb.start_soon(send(dut, "routes", route_layout(arch), routes))
    cycles = 0
    while not int(dut.filled.value):
        await port(dut)
        cycles += 1
    assert cycles <= 3 + 3 * len(routes) + 1


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    dut.clear.value = dut.routes__valid.value = 0
    await start(dut)
    arch = ARCHES[parameter("arch")]
    for _ in range(6):
        await clear(dut, 2)
        sender = cocotb.start_soon(send(dut, "routes", route_layout(arch), random_routes(arch, 2)))
        await ClockCycles(dut.clk, random.randint(1, 12))
        sender.cancel()
        dut.routes__valid.value = 0
        await reset(dut)
        await check(dut)
