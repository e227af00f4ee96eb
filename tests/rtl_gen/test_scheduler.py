"""Segments, jobs, slot tables and the routing record of random batches.

The bench is the rest of the accelerator: it sends the routes once the router's job is out, holds segments as long as
the streamer may, and works on the jobs in order, reading their slots through both ports.
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
from rtl_gen.types import job_layout, layer_layout, route_layout, segment_layout, slot_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, pack, receive, reset, send, start, unpack

ARCHES = {
    "small": Arch(columns=4, max_tokens=4, max_experts=16, max_top_k=4),
    "one_token": Arch(columns=4, max_tokens=1, max_experts=2, max_top_k=1),
    "wide": Arch(columns=32, max_tokens=64, max_experts=512, max_top_k=16),
}


@pytest.mark.parametrize("arch", list(ARCHES))
def test_scheduler(arch: str) -> None:
    run_bench(Scheduler(ARCHES[arch]), __name__, arch=arch)


def bench_arch() -> Arch:
    return ARCHES[parameter("arch")]


def random_layer(arch: Arch, **given: int) -> dict[str, int]:
    experts = given.get("experts", random.choice([2, arch.max_experts, random.randint(2, arch.max_experts)]))
    shared = random.randrange(3)
    return {
        "tokens": random.choice([1, arch.max_tokens, random.randint(1, arch.max_tokens)]),
        "hidden_blocks": random.randint(1, 1023),
        "inter_blocks": random.randint(1, 1023),
        "shared_blocks": random.randint(1, 1023) if shared else 0,
        "experts": experts,
        "top_k": random.randint(1, min(arch.max_top_k, experts)),
        "shared_gate": int(shared == 2),
        "passes": random.randint(1, 2),
        "shared_passes": random.randint(1, 2),
        "router_passes": 4,
        "router_address": random.getrandbits(20),
        "expert_address": random.getrandbits(24),
        "expert_stride": random.getrandbits(15),
        "expert_down": random.getrandbits(14),
        "shared_address": random.getrandbits(24),
        "shared_down": random.getrandbits(20),
        **given,
    }


def random_routes(layer: dict[str, int]) -> list[dict[str, Any]]:
    """Routes as the router emits them; some batches use few of the experts."""
    experts, top_k = layer["experts"], layer["top_k"]
    candidates = random.sample(range(experts), random.choice([experts, random.randint(top_k, experts)]))
    routes = []
    for token in range(layer["tokens"]):
        chosen = random.sample(candidates, top_k) + [experts] * (layer["shared_blocks"] != 0)
        for expert in chosen:
            weight = {"mantissa": random.randint(1 << 15, (1 << 16) - 1), "exponent": random.randint(-170, -15)}
            routes.append({"token": token, "expert": expert, "weight": weight, "last": 0})
    routes[-1]["last"] = 1
    return routes


def used_experts(layer: dict[str, int], routes: list[dict[str, Any]]) -> list[int]:
    """The shared expert first, then those that a token chose."""
    used = {route["expert"] for route in routes}
    return sorted(used, key=lambda expert: -1 if expert == layer["experts"] else expert)


def expected_segments(arch: Arch, layer: dict[str, int], experts: list[int]) -> list[dict[str, int]]:
    def segment(address: int, rows: int, blocks: int, passes: int) -> dict[str, int]:
        return {"address": address, "groups": -(-rows // arch.columns), "blocks": blocks, "passes": passes}

    hidden = layer["hidden_blocks"]
    rows = layer["experts"] + layer["shared_gate"]
    segments = [segment(layer["router_address"], rows, hidden, layer["router_passes"])]
    for expert in experts:
        if expert == layer["experts"]:
            address, down = layer["shared_address"], layer["shared_down"]
            inter, passes = layer["shared_blocks"], layer["shared_passes"]
        else:
            address, down = layer["expert_address"] + expert * layer["expert_stride"], layer["expert_down"]
            inter, passes = layer["inter_blocks"], layer["passes"]
        segments.append(segment(address, 2 * 32 * inter, hidden, passes))
        segments.append(segment(address + down, 32 * hidden, inter, passes))
    return segments


def expected_jobs(layer: dict[str, int], routes: list[dict[str, Any]]) -> list[tuple[dict[str, int], list[Any]]]:
    """Jobs and the contents of their slots."""
    none = {"mantissa": 0, "exponent": 0}
    slots = [{"token": token, "weight": none} for token in range(layer["tokens"])]
    jobs = [({"router": 1, "shared": 0, "parity": 0, "slots": layer["tokens"]}, slots)]
    for number, expert in enumerate(used_experts(layer, routes)):
        slots = [{"token": r["token"], "weight": r["weight"]} for r in routes if r["expert"] == expert]
        job = {"router": 0, "shared": int(expert == layer["experts"]), "parity": ~number & 1, "slots": len(slots)}
        jobs.append((job, slots))
    return jobs


def float_word(weight: dict[str, int]) -> int:
    value = weight["mantissa"] * 2.0 ** weight["exponent"]
    return struct.unpack("<I", struct.pack("<f", value))[0] if value >= 2.0**-126 else 0


async def read_slots(dut: Any, port: str, job: dict[str, int]) -> list[Any]:
    slots = []
    for index in range(job["slots"]):
        getattr(dut, f"{port}__parity").value = job["parity"]
        getattr(dut, f"{port}__index").value = index
        await RisingEdge(dut.clk)
        await ReadOnly()
        slots.append(unpack(slot_layout(bench_arch()), int(getattr(dut, f"{port}__data").value)))
        await RisingEdge(dut.clk)
    return slots


async def pulse(dut: Any, name: str) -> None:
    getattr(dut, name).value = 1
    await RisingEdge(dut.clk)
    getattr(dut, name).value = 0


class Batch:
    """One random batch: sends its routes, does its jobs, and compares everything that comes out."""

    def __init__(self, dut: Any, layer: dict[str, int], pressure: str):
        self.dut = dut
        self.layer = layer
        self.routes = routes = random_routes(layer)
        self.pattern = PATTERNS[pressure]
        self.jobs = expected_jobs(layer, routes)
        self.segments = expected_segments(bench_arch(), layer, used_experts(layer, routes))

    async def run(self) -> None:
        self.dut.layer.value = pack(layer_layout(), self.layer)
        await pulse(self.dut, "start")
        self.streamer = cocotb.start_soon(self.take_segments())
        await self.do_jobs()
        await self.streamer
        while not int(self.dut.done.value):
            await RisingEdge(self.dut.clk)
        assert int(self.dut.experts_used.value) == len(self.jobs) - 1
        await self.read_record()

    async def take_segments(self) -> None:
        got = await receive(self.dut, "segments", segment_layout(bench_arch()), len(self.segments), self.pattern)
        assert got == self.segments

    async def do_jobs(self) -> None:
        """Up to two expert jobs are held; the older one is read again before it is finished."""
        held: list[Any] = []
        for number, (want, slots) in enumerate(self.jobs):
            if len(held) == 2 or (held and random.randrange(2)):
                await self.finish(held)
            (job,) = await receive(self.dut, "jobs", job_layout(bench_arch()), 1, self.pattern)
            assert job == want, f"job {number}"
            assert await read_slots(self.dut, "slot_a", job) == slots, f"slots of job {number}"
            if want["router"]:
                await send(self.dut, "routes", route_layout(bench_arch()), self.routes, self.pattern)
            else:
                held.append((job, slots))
            assert not int(self.dut.done.value)
        while held:
            await self.finish(held)

    async def finish(self, held: list[Any]) -> None:
        job, slots = held.pop(0)
        await ClockCycles(self.dut.clk, random.choice([1, 5, 150]))
        assert await read_slots(self.dut, "slot_b", job) == slots
        assert not int(self.dut.done.value)
        await pulse(self.dut, "job_done")

    async def read_record(self) -> None:
        await pulse(self.dut, "read")
        got = await receive(self.dut, "routing", 32, 2 * len(self.routes), self.pattern)
        assert got == [word for route in self.routes for word in (route["expert"], float_word(route["weight"]))]


@cocotb.test(timeout_time=3, timeout_unit="ms")
@cocotb.parametrize(pressure=list(PATTERNS))
async def random_batches(dut: Any, pressure: str) -> None:
    """Batches of different shapes follow each other without a reset."""
    await start(dut)
    for _ in range(8):
        layer = random_layer(bench_arch())
        await Batch(dut, layer, pressure).run()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def every_expert_is_used(dut: Any) -> None:
    await start(dut)
    arch = bench_arch()
    experts = min(arch.max_experts, arch.max_top_k)
    if experts > 1:
        layer = random_layer(arch, experts=experts, top_k=experts, tokens=arch.max_tokens, shared_blocks=1)
        await Batch(dut, layer, "always").run()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def lazy_streamer(dut: Any) -> None:
    """A job comes although its own segments are still waiting to be taken."""
    await start(dut)
    layer = random_layer(bench_arch())
    batch = Batch(dut, layer, "always")
    dut.layer.value = pack(layer_layout(), layer)
    await pulse(dut, "start")
    for number, (want, _) in enumerate(batch.jobs):
        assert await receive(dut, "jobs", job_layout(bench_arch()), 1) == [want]
        expected = batch.segments[:1] if number == 0 else batch.segments[2 * number - 1 : 2 * number + 1]
        assert await receive(dut, "segments", segment_layout(bench_arch()), len(expected)) == expected
        if number == 0:
            await send(dut, "routes", route_layout(bench_arch()), batch.routes)
        else:
            await pulse(dut, "job_done")
    await ClockCycles(dut.clk, 2 * layer["experts"] + 10)
    assert int(dut.done.value)


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def segments_run_ahead(dut: Any) -> None:
    """The second expert's segments are offered although the first one's job is not taken yet."""
    await start(dut)
    layer = random_layer(bench_arch(), experts=2, top_k=1, shared_blocks=1)
    batch = Batch(dut, layer, "always")
    dut.layer.value = pack(layer_layout(), layer)
    await pulse(dut, "start")
    await receive(dut, "jobs", job_layout(bench_arch()), 1)
    await send(dut, "routes", route_layout(bench_arch()), batch.routes)
    assert await receive(dut, "segments", segment_layout(bench_arch()), 5) == batch.segments[:5]


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def a_half_in_use_is_not_filled(dut: Any) -> None:
    """No third expert job until the first is finished, however long that takes."""
    if bench_arch().max_top_k < 3:
        return
    await start(dut)
    layer = random_layer(bench_arch(), experts=4, top_k=3, shared_blocks=0)
    batch = Batch(dut, layer, "always")
    dut.layer.value = pack(layer_layout(), layer)
    await pulse(dut, "start")
    cocotb.start_soon(batch.take_segments())
    await receive(dut, "jobs", job_layout(bench_arch()), 1)
    await send(dut, "routes", route_layout(bench_arch()), batch.routes)
    await receive(dut, "jobs", job_layout(bench_arch()), 2)
    for job, slots in batch.jobs[1:3]:
        for _ in range(300):
            await RisingEdge(dut.clk)
            assert not int(dut.jobs__valid.value)
        assert await read_slots(dut, "slot_a", job) == slots
    await pulse(dut, "job_done")
    assert await receive(dut, "jobs", job_layout(bench_arch()), 1) == [batch.jobs[3][0]]


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await start(dut)
    for _ in range(6):
        batch = Batch(dut, random_layer(bench_arch()), "sometimes")
        task = cocotb.start_soon(batch.run())
        await ClockCycles(dut.clk, random.randint(2, 400))
        task.cancel()
        batch.streamer.cancel()
        for name in ("start", "read", "job_done", "routes__valid", "segments__ready", "jobs__ready", "routing__ready"):
            getattr(dut, name).value = 0
        await reset(dut)
        await Batch(dut, random_layer(bench_arch()), "always").run()
