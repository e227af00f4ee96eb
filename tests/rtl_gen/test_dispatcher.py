"""Fetches, slot table and jobs of random batches; the bench is the walk, the queues, the loader and the array."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.dispatcher import OUTSTANDING, Dispatcher
from rtl_gen.expert_queues import entry_layout
from rtl_gen.types import Kind, fetch_layout
from rtl_gen.walk import Step, work_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, interrupt, pack, receive, send, start
from tests.rtl_gen.batches import ROUTER, random_layer
from tests.rtl_gen.neighbours import INPUTS, Neighbours, pulse

ARCHES = {
    "one_slot": Arch(columns=4, max_tokens=2, slots=1, max_experts=2, max_top_k=1),
    "small": Arch(columns=8, max_tokens=32, slots=8, max_experts=16, max_top_k=3),
}


@pytest.mark.parametrize("arch", list(ARCHES))
def test_dispatcher(arch: str) -> None:
    run_bench(Dispatcher(ARCHES[arch]), __name__, arch=arch)


def bench_arch() -> Arch:
    return ARCHES[parameter("arch")]


def random_batch() -> dict[str, int]:
    return random_layer(bench_arch(), hidden_blocks=random.choice([1, 2, 3, 1023]), given_routes=random.randrange(2))


class Batch(Neighbours):
    """Also sends the works and answers for the expert queues."""

    def __init__(self, dut: Any, layer: dict[str, int], idle: str = "always", pressure: str = "always"):
        super().__init__(dut, bench_arch(), layer, "idle", pressure)
        self.idle_pattern = idle

    def works_in_order(self) -> list[dict[str, int]]:
        out = []
        names = ("step", "kind", "shared", "fresh", "slots", "groups", "bits")
        for work in self.works:
            sent = {name: work[name] for name in names if name in work}
            if work.get("fresh") and work["expert"] != ROUTER:
                sent["head"] = self.queues[work["expert"]][0]
            out.append(sent)
        return out

    async def serve_queues(self) -> None:
        following = {
            place: after
            for places in self.queues.values()
            for place, after in zip(places, [*places[1:], 0], strict=True)
        }
        while True:
            await ReadOnly()
            place = int(self.dut.place.value)
            await RisingEdge(self.dut.clk)
            if place < len(self.routes):
                self.dut.entry.value = pack(entry_layout(bench_arch()), {
                    name: self.routes[place][name] for name in ("expert", "token", "weight")
                })  # fmt: skip
                self.dut.next.value = following.get(place, 0)

    async def run(self) -> None:
        self.start()
        works = send(self.dut, "works", work_layout(bench_arch()), self.works_in_order(), PATTERNS[self.idle_pattern])
        self.tasks.append(cocotb.start_soon(works))
        self.servers.append(cocotb.start_soon(self.serve_queues()))
        await self.end()


async def begin(dut: Any) -> None:
    for name in (*INPUTS, "works__valid"):
        getattr(dut, name).value = 0
    await start(dut)


@cocotb.test(timeout_time=3, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS), pressure=list(PATTERNS))
async def random_batches(dut: Any, idle: str, pressure: str) -> None:
    """Batches of different shapes follow each other without a reset."""
    await begin(dut)
    for _ in range(2):
        await Batch(dut, random_batch(), idle, pressure).run()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def five_cycles_a_slot(dut: Any) -> None:
    await begin(dut)
    arch = bench_arch()
    work = {"step": Step.JOB, "kind": Kind.UP, "fresh": 1, "slots": arch.slots, "groups": 1}
    await send(dut, "works", work_layout(arch), [work])
    dut.fetches__ready.value = 1
    cycles = 0
    for _ in range(arch.slots):
        while True:
            await ReadOnly()
            valid = int(dut.fetches__valid.value)
            cycles += 1
            await RisingEdge(dut.clk)
            if valid:
                break
    assert cycles == 5 * arch.slots


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def results_under_way_are_bounded(dut: Any) -> None:
    """Without a single result, so many jobs and no more; each one that arrives allows another."""
    await begin(dut)
    arch = bench_arch()
    work = {"step": Step.JOB, "kind": Kind.UP, "fresh": 1, "slots": 1, "groups": 1}
    sender = cocotb.start_soon(send(dut, "works", work_layout(arch), [work] * (OUTSTANDING + 2)))
    dut.jobs__ready.value = 1
    for number in range(OUTSTANDING + 2):
        if number >= OUTSTANDING:
            for _ in range(100):
                await ReadOnly()
                assert not int(dut.fetches__valid.value) and not int(dut.idle.value)
                await RisingEdge(dut.clk)
            await pulse(dut, "job_done", 1 << number % 3)
        await receive(dut, "fetches", fetch_layout(arch), 1)
        await pulse(dut, "loaded")
        await ClockCycles(dut.clk, 3)
        await pulse(dut, "released")
    await sender


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    for _ in range(6):
        batch = Batch(dut, random_batch(), "sometimes", "sometimes")
        working = cocotb.start_soon(batch.run())
        await ClockCycles(dut.clk, random.randint(2, 600))
        batch.stop()
        await interrupt(dut, working, *INPUTS, "works__valid")
        await Batch(dut, random_batch()).run()
