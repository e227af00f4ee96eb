"""Segments and works of random batches; the bench is the expert queues, the streamer and the dispatcher."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.types import Kind, layer_layout, place_bits, segment_layout
from rtl_gen.walk import WORKS, Step, Walk, work_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, interrupt, pack, receive, start, unpack
from tests.rtl_gen.batches import ROUTER, even_parts, expected_batch, random_layer, reads_ahead, segment_of
from tests.rtl_gen.neighbours import serve_table

ARCHES = {
    "one_token": Arch(columns=4, max_tokens=1, slots=1, max_experts=2, max_top_k=1),
    "small": Arch(columns=8, max_tokens=64, slots=4, max_experts=16, max_top_k=4),
    "wide": Arch(columns=128, max_tokens=512, slots=64, max_experts=512, max_top_k=16),
}
SHARED = {"shared_blocks": 3, "shared_gate": 1}
UNSHARED = {"shared_blocks": 0, "shared_gate": 0}


@pytest.mark.parametrize("arch", list(ARCHES))
def test_walk(arch: str) -> None:
    run_bench(Walk(ARCHES[arch]), __name__, arch=arch)


def bench_arch() -> Arch:
    return ARCHES[parameter("arch")]


def random_counts(layer: dict[str, int]) -> dict[int, int]:
    """Vectors of a few experts: 1, a job's, one more, or any number."""
    tokens, slots = layer["tokens"], layer["slots"]
    used = random.sample(range(layer["experts"]), random.randint(1, min(layer["experts"], 6)))
    counts = {expert: min(tokens, random.choice([1, slots, slots + 1, random.randint(1, tokens)])) for expert in used}
    if not layer["given_routes"]:
        counts[ROUTER] = tokens
    if layer["shared_blocks"]:
        counts[layer["experts"]] = tokens
    return counts


class Batch:
    """A batch, its queues, and everything that the walk should issue."""

    def __init__(self, dut: Any, layer: dict[str, int], counts: dict[int, int] | None = None):
        self.dut = dut
        self.layer = layer
        self.counts = random_counts(layer) if counts is None else counts
        self.heads = {expert: random.getrandbits(place_bits(bench_arch())) for expert in range(layer["experts"] + 1)}
        self.segments, self.works = expected_batch(bench_arch(), layer, self.counts)
        self.routed_works = 1 + next(
            (index for index, work in enumerate(self.works) if 0 <= work.get("expert", -1) < layer["experts"])
        )
        self.tasks: list[Any] = []

    async def begin(self) -> None:
        self.dut.layer.value = pack(layer_layout(), self.layer)
        self.dut.routed.value = 0
        self.tasks.append(cocotb.start_soon(self.serve_queues()))
        self.tasks.append(cocotb.start_soon(serve_table(self.dut, self.layer)))
        await self.pulse("start")

    async def pulse(self, name: str) -> None:
        getattr(self.dut, name).value = 1
        await RisingEdge(self.dut.clk)
        getattr(self.dut, name).value = 0

    async def serve_queues(self) -> None:
        while True:
            await ReadOnly()
            expert = int(self.dut.expert.value)
            await RisingEdge(self.dut.clk)
            self.dut.head.value = self.heads.get(expert, 0)
            self.dut.count.value = self.counts.get(expert, 0)

    async def take_segments(self, count: int, pattern: str = "always") -> list[Any]:
        return await receive(self.dut, "segments", segment_layout(bench_arch()), count, PATTERNS[pattern])

    async def take_works(self, first: int, count: int, pattern: str = "always") -> None:
        got = await receive(self.dut, "works", work_layout(bench_arch()), count, PATTERNS[pattern])
        self.check_works(first, got)

    def check_works(self, first: int, got: list[Any]) -> None:
        for number, (have, work) in enumerate(zip(got, self.works[first : first + len(got)], strict=True), first):
            want = dict(work)
            expert = want.pop("expert", ROUTER)
            if expert in range(self.layer["experts"]) and want["fresh"]:
                want["head"] = self.heads[expert]
            assert {name: have[name] for name in want} == want, f"work {number} of {self.layer}"

    async def run(self, segments: str = "always", works: str = "always") -> None:
        """The whole batch; routes arrive at any time after the start."""
        await self.begin()
        self.tasks.append(cocotb.start_soon(self.route_later()))
        streamer = cocotb.start_soon(self.take_segments(len(self.segments), segments))
        self.tasks.append(streamer)
        await self.take_works(0, len(self.works), works)
        assert await streamer == self.segments
        await self.finish()

    async def route_later(self) -> None:
        await ClockCycles(self.dut.clk, random.choice([1, 10, 200]))
        await self.pulse("routed")

    async def finish(self) -> None:
        """Nothing more is issued."""
        for _ in range(20):
            await RisingEdge(self.dut.clk)
        await ReadOnly()
        assert int(self.dut.done.value)
        assert not int(self.dut.segments__valid.value) and not int(self.dut.works__valid.value)
        assert int(self.dut.experts_used.value) == len(self.counts.keys() - {ROUTER})
        self.stop()
        await RisingEdge(self.dut.clk)

    def stop(self) -> None:
        for task in self.tasks:
            task.cancel()


async def begin(dut: Any) -> None:
    for name in ("start", "routed", "segments__ready", "works__ready"):
        getattr(dut, name).value = 0
    await start(dut)


@cocotb.test(timeout_time=3, timeout_unit="ms")
@cocotb.parametrize(segments=list(PATTERNS), works=list(PATTERNS))
async def random_batches(dut: Any, segments: str, works: str) -> None:
    """Batches of different shapes follow each other without a reset."""
    await begin(dut)
    for given in (0, 0, 1):
        await Batch(dut, random_layer(bench_arch(), given_routes=given)).run(segments, works)


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def every_expert_is_used(dut: Any) -> None:
    await begin(dut)
    layer = random_layer(bench_arch(), hidden_blocks=3, chunk_blocks=2, **SHARED)
    await Batch(dut, layer, {expert: layer["tokens"] for expert in range(ROUTER, layer["experts"] + 1)}).run()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def a_job_does_not_wait_for_later_segments(dut: Any) -> None:
    """A job is offered while its own segment is still waiting to be taken."""
    await begin(dut)
    batch = Batch(dut, random_layer(bench_arch()))
    await batch.begin()
    await batch.pulse("routed")
    segments = iter(batch.segments)
    for number, work in enumerate(batch.works):
        await batch.take_works(number, 1)
        if work["step"] == Step.JOB.value:
            assert await batch.take_segments(1) == [next(segments)]
    await batch.finish()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def segments_run_ahead(dut: Any) -> None:
    """Those of ``WORKS`` pieces of work and one more are offered although no work is taken yet, across passes."""
    await begin(dut)
    layer = random_layer(bench_arch(), hidden_blocks=4, chunk_blocks=1, tokens=1, **SHARED)
    batch = Batch(dut, layer, {ROUTER: 1, 0: 1, layer["experts"]: 1})
    await batch.begin()
    await batch.pulse("routed")
    ahead = 0
    for count, work in enumerate(batch.works):
        ahead += work["step"] == Step.JOB.value and count <= WORKS
    assert await batch.take_segments(ahead) == batch.segments[:ahead]
    batch.stop()


@cocotb.test(timeout_time=3, timeout_unit="ms")
@cocotb.parametrize(shared=[0, 3])
async def experts_are_read_ahead_of_the_routes(dut: Any, shared: int) -> None:
    """All of them, if there are many choices; those that no token chose have a job that is dropped, and no down."""
    await begin(dut)
    arch = bench_arch()
    experts = min(arch.max_experts, arch.slots * arch.max_top_k // 4)
    if experts < 2:
        return
    layer = random_layer(
        arch, experts=experts, top_k=min(arch.max_top_k, experts), tokens=arch.slots, slots=arch.slots, given_routes=0,
        shared_blocks=shared, shared_gate=0, hidden_blocks=1, chunk_blocks=1,
    )  # fmt: skip
    assert reads_ahead(layer)
    counts = {expert: random.randint(1, layer["tokens"]) for expert in range(0, experts, 2)}
    counts |= {ROUTER: layer["tokens"]} | ({experts: layer["tokens"]} if shared else {})
    batch = Batch(dut, layer, counts)
    ahead = [segment_of(arch, layer, Kind.UP, 0, expert) for expert in range(experts)]
    first = batch.routed_works - 1
    await batch.begin()
    assert await batch.take_segments(first + experts) == batch.segments[:first] + ahead
    await batch.pulse("routed")
    segments = cocotb.start_soon(batch.take_segments(len(counts) - 1))
    works = await receive(dut, "works", work_layout(arch), first + experts + 1 + len(counts))
    up, down = works[first : first + experts], works[first + experts + 1 :]
    assert [(work["unused"], work["bits"]) for work in up] == [
        (expert % 2, segment["bits"]) for expert, segment in enumerate(ahead)
    ]
    assert works[first + experts]["step"] == Step.BARRIER.value and down[-1]["step"] == Step.STORE.value
    downs = [segment for segment, work in zip(batch.segments, jobs_of(batch), strict=True) if work == Kind.DOWN.value]
    assert await segments == downs and [work["kind"] for work in down[:-1]] == [Kind.DOWN.value] * (len(counts) - 1)
    await batch.finish()


def jobs_of(batch: Batch) -> list[int]:
    """The kinds of a batch's jobs, one for each segment."""
    return [work["kind"] for work in batch.works if work["step"] == Step.JOB.value]


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def only_routed_experts_wait_for_the_routes(dut: Any) -> None:
    await begin(dut)
    for shared in (SHARED, UNSHARED):
        batch = Batch(dut, random_layer(bench_arch(), **shared))
        early = batch.routed_works - 1
        await batch.begin()
        streamer = cocotb.start_soon(batch.take_segments(len(batch.segments)))
        await batch.take_works(0, early)
        kinds = {work["kind"] for work in batch.works[:early]}
        assert (Kind.UP.value in kinds) == bool(shared["shared_blocks"])
        for _ in range(random.choice([50, 300])):
            await ReadOnly()
            assert not int(dut.works__valid.value) and not int(dut.segments__valid.value)
            assert not int(dut.done.value)
            await RisingEdge(dut.clk)
        await batch.pulse("routed")
        await batch.take_works(early, len(batch.works) - early)
        assert await streamer == batch.segments
        await batch.finish()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def cycles_of_an_expert(dut: Any) -> None:
    """Three without a token; nine with a job; what is declared with more."""
    await begin(dut)
    arch = bench_arch()
    layer = random_layer(arch, experts=arch.max_experts, hidden_blocks=1, chunk_blocks=1, **UNSHARED)
    batch = Batch(dut, layer)
    await batch.begin()
    await batch.pulse("routed")
    dut.segments__ready.value = dut.works__ready.value = 1
    taken: list[tuple[int, Any]] = []
    cycle = 0
    while len(taken) < len(batch.works):
        await ReadOnly()
        if int(dut.works__valid.value):
            taken.append((cycle, unpack(work_layout(arch), int(dut.works__payload.value))))
        await RisingEdge(dut.clk)
        cycle += 1
    dut.segments__ready.value = dut.works__ready.value = 0
    batch.check_works(0, [work for _, work in taken])
    for (before, _), (after, _), earlier, later in zip(
        taken, taken[1:], batch.works, batch.works[1:], strict=False
    ):
        if earlier.get("kind") == later.get("kind") == Kind.UP.value:
            parts = even_parts(batch.counts[later["expert"]], layer["slots"])
            more = len(parts) + parts[-1] if len(parts) > 1 else 0
            cycles = 3 * (later["expert"] - earlier["expert"] - 1) + 9 + more if later["fresh"] else 2
            assert after - before == cycles, f"{earlier} to {later}"
    await batch.finish()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    for _ in range(6):
        batch = Batch(dut, random_layer(bench_arch()))
        working = cocotb.start_soon(batch.run("sometimes", "sometimes"))
        await ClockCycles(dut.clk, random.randint(1, 400))
        batch.stop()
        await interrupt(dut, working, "start", "routed", "segments__ready", "works__ready")
        await Batch(dut, random_layer(bench_arch())).run()
