"""The loader, the array, the units behind it and the writer, as the dispatcher sees them, alone or in the scheduler."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from amaranth.hdl import Shape
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.types import Kind, address_bits, fetch_layout, job_layout, layer_layout, slot_layout, table_layout
from rtl_gen.walk import Step
from sim.bench.streams import PATTERNS, Pattern, pack, receive, unpack
from tests.rtl_gen.batches import ROUTER, expected_batch, queues_of, random_routes, table_entry

INPUTS = ("loaded", "released", "job_done", "written", "stored", "fetches__ready", "jobs__ready")
"""What the neighbours drive."""


def steady(name: str) -> Pattern:
    """A pattern that goes on where the last stream stopped, for streams that are received value by value."""
    active = PATTERNS[name]()
    return lambda: active


async def pulse(dut: Any, name: str, value: int = 1) -> None:
    getattr(dut, name).value = value
    await RisingEdge(dut.clk)
    getattr(dut, name).value = 0


async def serve_table(dut: Any, layer: dict[str, int]) -> None:
    """The expert table: its read port, and when it is loaded."""
    dut.table_loaded.value = 0
    cycles = random.choice([0, 3, 50])
    while True:
        await ReadOnly()
        expert = int(dut.table_expert.value)
        loaded = int(dut.table_loaded.value)
        await RisingEdge(dut.clk)
        cycles -= 1
        dut.table_loaded.value = int(cycles < 0)
        known = loaded and expert < layer["experts"]
        entry = table_entry(layer, expert) if known else {"address": random.getrandbits(24), "bits": 2}
        dut.table_entry.value = pack(table_layout(), entry)


class Neighbours:
    """A random batch: loads its vectors, does its jobs, writes its chunks, and compares all that is asked for.

    Parameters:
        idle: name of the output that is high when all jobs are done.
        pressure: pattern of the fetches and the jobs.
    """

    def __init__(self, dut: Any, arch: Arch, layer: dict[str, int], idle: str, pressure: str = "always"):
        self.dut, self.arch, self.layer, self.idle = dut, arch, layer, idle
        self.routes = random_routes(layer)
        self.queues = queues_of(layer, self.routes)
        self.pattern = pressure
        self.inputs, self.hidden = random.getrandbits(22), random.getrandbits(24)
        counts = {expert: len(places) for expert, places in self.queues.items()}
        self.segments, self.works = expected_batch(arch, layer, counts)
        self.jobs = [work for work in self.works if work["step"] == Step.JOB.value]
        self.fill_slots()
        self.loaded = self.taken = self.finished = self.stores = 0
        self.held: list[int] = []  # jobs whose half is in use
        self.unfinished: list[int] = []
        self.hidden_written = False
        self.first_half: int | None = None
        self.tasks: list[Any] = []  # that end with the batch
        self.servers: list[Any] = []

    def fill_slots(self) -> None:
        """Which choices a job works on, and where its vectors lie; later passes go through the same queues again."""
        choices = self.layer["top_k"] + (self.layer["shared_blocks"] != 0)
        position: dict[int, int] = {}
        chunk = -1
        hidden = self.hidden
        for work in self.works:
            if work["step"] != Step.JOB.value:
                chunk += 1
                hidden = self.hidden
                continue
            expert = work["expert"]
            first = 0 if work["fresh"] else position[expert]
            position[expert] = first + work["slots"]
            places = self.queues[expert][first : position[expert]]
            tokens = [place // choices for place in places]
            if expert == ROUTER:
                tokens = list(range(first, position[expert]))
            work["chunk"] = max(chunk, 0)
            work["hidden"] = hidden
            hidden += work["slots"] * self.layer["shared_blocks" if work["shared"] else "inter_blocks"]
            work["of"] = [
                {"token": token, "unused": 0, "weight": self.routes[place]["weight"]}
                for token, place in zip(tokens, places, strict=True)
            ]

    def drive(self) -> None:
        """The batch's constants; no pulses."""
        dut = self.dut
        dut.layer.value = pack(layer_layout(), self.layer)
        dut.input_address.value, dut.hidden_address.value = self.inputs, self.hidden
        for name in INPUTS:
            getattr(dut, name).value = int(name == "written")

    def start(self) -> None:
        self.drive()
        work = (self.load(), self.compute(), self.finish(), self.write_hidden(), self.store())
        self.tasks = [cocotb.start_soon(task) for task in work]
        self.servers = [cocotb.start_soon(self.watch())]

    async def end(self) -> None:
        """Wait until all is done."""
        for task in self.tasks:
            await task
        await ClockCycles(self.dut.clk, 4)
        assert int(getattr(self.dut, self.idle).value), f"not {self.idle}"
        self.stop()

    def stop(self) -> None:
        for task in self.tasks + self.servers:
            task.cancel()

    # ---- loader ----

    def expected_fetches(self, job: dict[str, Any]) -> list[dict[str, int]]:
        """Without the half. Hidden activations are of no token."""
        layer, slots = self.layer, job["slots"]
        most_lines = Shape.cast(fetch_layout(self.arch)["lines"].shape).width
        if job["kind"] == Kind.DOWN.value:
            blocks = layer["shared_blocks"] if job["shared"] else layer["inter_blocks"]
            return [{
                "address": job["hidden"] % (1 << address_bits(self.arch)), "lines": slots * blocks % (1 << most_lines),
                "blocks": blocks, "hidden": 1, "slot": slots - 1, "last": 1,
            }]  # fmt: skip
        blocks, router = layer["input_blocks"], int(job["kind"] == Kind.ROUTER.value)
        return [
            {
                "address": (self.inputs + of["token"] * 2 * blocks) % (1 << address_bits(self.arch)),
                "lines": blocks << router, "blocks": blocks, "hidden": 0, "slot": index,
                "token": of["token"], "last": int(index == slots - 1),
            }
            for index, of in enumerate(job["of"])
        ]  # fmt: skip

    async def load(self) -> None:
        pattern = steady(self.pattern)
        for number, job in enumerate(self.jobs):
            for index, want in enumerate(self.expected_fetches(job)):
                (fetch,) = await receive(self.dut, "fetches", fetch_layout(self.arch), 1, pattern)
                if self.first_half is None:
                    self.first_half = fetch["half"]
                want["half"] = self.first_half ^ number & 1
                assert {name: fetch[name] for name in want} == want, f"fetch {index} of job {number}"
                assert number < self.taken - len(self.held) + 2, f"job {number}: its half is in use"
                if job["kind"] == Kind.DOWN.value:
                    assert self.hidden_written and self.stores == job["chunk"], f"job {number}: too early"
            await ClockCycles(self.dut.clk, random.choice([1, 1, 2, 40]))
            self.loaded += 1
            await pulse(self.dut, "loaded")

    # ---- array ----

    async def compute(self) -> None:
        pattern = steady(self.pattern)
        for number, job in enumerate(self.jobs):
            if len(self.held) == 2 or (self.held and random.randrange(2)):
                await self.release()
            (got,) = await receive(self.dut, "jobs", job_layout(self.arch), 1, pattern)
            self.held.append(number)
            self.unfinished.append(number)
            self.taken += 1
            if job["kind"] == Kind.UP.value:
                self.dut.written.value = 0
            half = self.first_half ^ number & 1
            want = {name: job[name] for name in ("kind", "shared", "slots", "groups", "bits")}
            assert got == {**want, "half": half}, f"job {number}"
            assert self.loaded > number, f"job {number} before its vectors"
            await self.check_slots(number)
        while self.held:
            await self.release()

    async def check_slots(self, number: int) -> None:
        job = self.jobs[number]
        for index, want in enumerate(job["of"]):
            self.dut.slot__half.value, self.dut.slot__index.value = self.first_half ^ number & 1, index
            await RisingEdge(self.dut.clk)
            await ReadOnly()
            got = unpack(slot_layout(self.arch), int(self.dut.slot__data.value))
            names = {Kind.ROUTER.value: ["token"], Kind.UP.value: ["token", "unused"]}.get(job["kind"], list(want))
            assert {name: got[name] for name in names} == {name: want[name] for name in names}, f"job {number}"
            await RisingEdge(self.dut.clk)

    async def release(self) -> None:
        """The older job's slots are there to the end."""
        await ClockCycles(self.dut.clk, random.choice([1, 1, 5, 80]))
        await self.check_slots(self.held[0])
        self.held.pop(0)
        await pulse(self.dut, "released")

    # ---- router, hidden writer, combine buffer ----

    async def route(self, job: dict[str, Any]) -> None:
        """The router emits the routes of a job."""

    async def finish(self) -> None:
        """Results of the jobs arrive in order, sometimes of two kinds in a cycle."""
        while self.finished < len(self.jobs):
            await ClockCycles(self.dut.clk, random.choice([1, 1, 3, 60]))
            done: list[int] = []
            kinds: set[int] = set()
            for number in list(self.unfinished):
                kind = self.jobs[number]["kind"]
                if kind not in kinds:
                    kinds.add(kind)
                    done.append(number)
                    if kind == Kind.ROUTER.value:
                        await self.route(self.jobs[number])
            if done:
                for number in done:
                    self.unfinished.remove(number)
                self.finished += len(done)
                await pulse(self.dut, "job_done", sum(1 << kind for kind in kinds))

    # ---- writer ----

    async def write_hidden(self) -> None:
        """The writer is busy with hidden activations until a while after the last of them."""
        last = max((number for number, job in enumerate(self.jobs) if job["kind"] == Kind.UP.value), default=-1)
        while self.taken <= last or any(number <= last for number in self.unfinished):
            await RisingEdge(self.dut.clk)
        await ClockCycles(self.dut.clk, random.choice([1, 2, 100]))
        self.hidden_written = True
        self.dut.written.value = 1

    async def store(self) -> None:
        dut = self.dut
        for chunk in range(sum(work["step"] == Step.STORE.value for work in self.works)):
            while True:
                await ReadOnly()
                store = int(dut.store.value)
                await RisingEdge(dut.clk)
                if store:
                    break
            jobs = sum(job["chunk"] <= chunk for job in self.jobs)
            assert self.finished == self.taken == jobs, f"chunk {chunk} is stored after {self.finished} of {jobs} jobs"
            for _ in range(random.choice([1, 2, 50])):
                await ReadOnly()
                assert int(dut.storing.value) and not int(dut.store.value)
                await RisingEdge(dut.clk)
            self.stores += 1
            await pulse(dut, "stored")

    async def watch(self) -> None:
        while True:
            await ReadOnly()
            if int(getattr(self.dut, self.idle).value):
                assert not self.unfinished, f"{self.idle}, but {self.unfinished} are under way"
            await RisingEdge(self.dut.clk)
