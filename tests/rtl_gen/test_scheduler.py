"""Whole batches: order of segments and jobs, what waits for what, and the routing record.

The bench is the rest of the accelerator: it streams weights, loads vectors, works on jobs and routes tokens.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.scheduler import Scheduler
from rtl_gen.types import Kind, route_layout, segment_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, interrupt, receive, send, start
from tests.rtl_gen.batches import ROUTER, random_layer
from tests.rtl_gen.neighbours import INPUTS, Neighbours, pulse, serve_table, steady

ARCHES = {
    "one_token": Arch(columns=4, max_tokens=1, slots=1, max_experts=2, max_top_k=1),
    "wide": Arch(columns=32, max_tokens=64, slots=8, max_experts=512, max_top_k=16),
}
MOST_CHOICES = 24
"""Of a random batch, which bounds its time."""


@pytest.mark.parametrize("arch", list(ARCHES))
def test_scheduler(arch: str) -> None:
    run_bench(Scheduler(ARCHES[arch]), __name__, arch=arch)


def bench_arch() -> Arch:
    return ARCHES[parameter("arch")]


def random_batch(**given: int) -> dict[str, int]:
    arch = bench_arch()
    top_k = random.choice([1, min(2, arch.max_top_k), random.randint(1, arch.max_top_k)])
    experts = random.choice([arch.max_experts, random.randint(max(2, top_k), min(arch.max_experts, 40))])
    tokens = random.randint(1, min(arch.max_tokens, MOST_CHOICES // top_k))
    return random_layer(arch, **{"top_k": top_k, "experts": experts, "tokens": tokens, **given})


def float_word(weight: dict[str, int]) -> int:
    value = weight["mantissa"] * 2.0 ** weight["exponent"] * (-1) ** weight["negative"]
    return struct.unpack("<I", struct.pack("<f", value))[0] if abs(value) >= 2.0**-126 else 0


class Batch(Neighbours):
    """Also streams the segments, sends the routes and reads the record.

    Parameters:
        lazy: a segment is not taken before its job.
    """

    def __init__(
        self, dut: Any, layer: dict[str, int], idle: str = "always", pressure: str = "always", lazy: bool = False
    ):
        super().__init__(dut, bench_arch(), layer, "done", pressure)
        self.route_pattern = steady(idle)
        self.lazy = lazy

    async def run(self) -> None:
        self.start()
        await pulse(self.dut, "start")
        if self.layer["given_routes"]:
            self.tasks.append(cocotb.start_soon(self.send_routes(self.routes)))
        self.tasks.append(cocotb.start_soon(self.take_segments()))
        self.servers.append(cocotb.start_soon(serve_table(self.dut, self.layer)))
        await self.end()
        assert int(self.dut.experts_used.value) == len(self.queues.keys() - {ROUTER})
        await self.read_record()

    async def take_segments(self) -> None:
        pattern = steady(self.pattern)
        for number, want in enumerate(self.segments):
            while self.lazy and self.taken <= number:
                await RisingEdge(self.dut.clk)
            assert await receive(self.dut, "segments", segment_layout(self.arch), 1, pattern) == [want], number

    async def route(self, job: dict[str, Any]) -> None:
        tokens = [of["token"] for of in job["of"]]
        routes = [route for route in self.routes if route["token"] in tokens]
        await self.send_routes(routes)

    async def send_routes(self, routes: list[dict[str, Any]]) -> None:
        await send(self.dut, "routes", route_layout(self.arch), routes, self.route_pattern)

    async def read_record(self) -> None:
        await pulse(self.dut, "read")
        got = await receive(self.dut, "routing", 32, 2 * len(self.routes), PATTERNS[self.pattern])
        assert got == [word for route in self.routes for word in (route["expert"], float_word(route["weight"]))]
        await ReadOnly()
        assert int(self.dut.routing_idle.value)
        await RisingEdge(self.dut.clk)


OWN_INPUTS = ("start", "read", "routes__valid", "segments__ready", "routing__ready")


async def begin(dut: Any) -> None:
    for name in (*INPUTS, *OWN_INPUTS):
        getattr(dut, name).value = 0
    await start(dut)


@cocotb.test(timeout_time=3, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS), pressure=list(PATTERNS))
async def random_batches(dut: Any, idle: str, pressure: str) -> None:
    """Batches of different shapes follow each other without a reset, with and without a router."""
    await begin(dut)
    for given in (0, 1):
        await Batch(dut, random_batch(given_routes=given), idle, pressure).run()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def one_more_than_a_job(dut: Any) -> None:
    """Every expert is chosen by all tokens: two halves, not a job and one more. Also the largest batch."""
    await begin(dut)
    arch = bench_arch()
    top_k = min(2, arch.max_top_k)
    for tokens in {min(arch.max_tokens, arch.slots + 1), arch.max_tokens}:
        layer = random_batch(experts=2, top_k=top_k, tokens=tokens, slots=arch.slots, hidden_blocks=1, chunk_blocks=1)
        batch = Batch(dut, layer)
        sizes = [job["slots"] for job in batch.jobs if job["kind"] == Kind.ROUTER.value]
        assert sum(sizes) == tokens and max(sizes) - min(sizes) <= 1
        await batch.run()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def jobs_do_not_wait_for_later_segments(dut: Any) -> None:
    """A job comes although its own segment is still waiting to be taken."""
    await begin(dut)
    for _ in range(2):
        await Batch(dut, random_batch(), lazy=True).run()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def segments_run_ahead(dut: Any) -> None:
    """The weights of gate_up and down are asked for although not one vector of the router's job has been loaded."""
    await begin(dut)
    layer = random_batch(experts=2, top_k=1, tokens=1, shared_blocks=2, hidden_blocks=3, chunk_blocks=1)
    batch = Batch(dut, layer)
    batch.drive()
    batch.servers = [cocotb.start_soon(serve_table(dut, layer))]
    await pulse(dut, "start")
    await ClockCycles(dut.clk, layer["experts"] + 5)
    await send(dut, "routes", route_layout(bench_arch()), batch.routes)
    assert await receive(dut, "segments", segment_layout(bench_arch()), 7) == batch.segments[:7]


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    for _ in range(4):
        batch = Batch(dut, random_batch(), "sometimes", "sometimes")
        working = cocotb.start_soon(batch.run())
        await ClockCycles(dut.clk, random.randint(2, 800))
        batch.stop()
        await interrupt(dut, working, *INPUTS, *OWN_INPUTS)
        await Batch(dut, random_batch()).run()
