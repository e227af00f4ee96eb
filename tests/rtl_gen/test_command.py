"""The command processor among fake neighbours: what a command does, in which order, and how it ends."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import SEGMENT_ALIGN, Arch
from moe_hw.registers import COMMAND, COMMAND_MAGIC, COMPLETION, COUNTERS, LAYER, LAYER_MAGIC, ONE, Status, Waiting
from rtl_gen.bus import range_layout
from rtl_gen.command import Command
from rtl_gen.types import CUT_WORDS, layer_layout
from sim.bench import streams
from sim.bench.memory import serve_reads
from sim.bench.runner import parameter, run_bench

RING_BASE, LAYERS = 2, 16
RING = 4
MEMORY_BYTES = 1 << 13

LAYER_WORDS = {
    "magic": LAYER_MAGIC, "hidden_blocks": 3, "input_blocks": 3, "gated": 1, "inter_blocks": 2, "shared_blocks": 1,
    "experts": 8, "top_k": 2, "normalise": 1, "shared_gate": 1, "shared_bits": 8, "router_bits": 16,
    "scale": ONE, "epsilon": 1, "expert_down": 77, "router_exponent": -30, "router_shift": -3, "combine_exponent": 5,
}  # fmt: skip
BEFORE = [
    (Status.BAD_LAYER, {"magic": LAYER_MAGIC + 1}, {}),
    *((Status.BAD_TOKENS, {}, {"tokens": tokens}) for tokens in (0, 5, 1 << 15)),
    *((Status.BAD_SHAPE, {name: 0}, {}) for name in ("hidden_blocks", "input_blocks", "inter_blocks", "scale",
                                                     "router_bits", "experts", "shared_bits", "shared_blocks")),
    *((Status.BAD_SHAPE, words, {}) for words in ({"epsilon": 0}, {"score": 3}, {"score": 1, "correction": 3})),
    *((Status.BAD_SHAPE, {"groups": groups, "group_size": size, "kept_groups": kept}, {})
      for groups, size, kept in ((4, 2, 0), (4, 2, 5), (8, 1, 1), (3, 2, 2), (2, 4, 3))),
    *((Status.BAD_SHAPE, words, {}) for words in ({"correction": 2}, {"group_zero": 1}, {"elements": 1})),
    (Status.TOO_MANY_EXPERTS, {"experts": 17}, {}),
    *((Status.BAD_TOP_K, layer, {}) for layer in ({"top_k": 5}, {"top_k": 0}, {"experts": 1})),
    *((Status.VECTOR_BUFFER_FULL, {name: size}, {}) for name, size in (("input_blocks", 33), ("inter_blocks", 65),
                                                                      ("shared_blocks", 65))),
    (Status.COMBINE_BUFFER_FULL, {"hidden_blocks": 9}, {"chunk_blocks": 9}),
    (Status.LOGIT_BUFFER_FULL, {"experts": 16}, {"slots": 3}),
    *((Status.BAD_CUT, {}, words) for words in ({"slots": 0}, {"slots": 3}, {"chunk_blocks": 0}, {"chunk_blocks": 4})),
]  # fmt: skip
"""Changes of the layer and of the command that are refused."""
LARGEST = [
    ({"experts": 15}, {"slots": 1}), ({"experts": 16}, {}), ({"top_k": 4}, {}), ({"input_blocks": 32}, {}),
    ({"inter_blocks": 64}, {}), ({"shared_blocks": 64}, {}), ({"hidden_blocks": 8}, {"chunk_blocks": 8}),
    ({}, {"chunk_blocks": 3}), ({"groups": 8, "group_size": 1, "kept_groups": 2}, {}),
    ({"correction": 1, "group_zero": 1}, {}),
    ({"score": 2, "correction": 2}, {}), ({"normalise": 0, "epsilon": 0}, {}),
]  # fmt: skip
"""Changes that are not."""
AFTER = {
    "table_error": Status.LAYER_READ_ERROR,
    "vector_error": Status.VECTOR_READ_ERROR,
    "routes_error": Status.ROUTES_READ_ERROR,
    "weight_error": Status.WEIGHT_READ_ERROR,
    "write_error": Status.WRITE_ERROR,
    "overflow": Status.OVERFLOW,
}
"""Flags in the order in which they win."""
OTHERS = {
    "weights_outstanding": Waiting.WEIGHT_READ,
    "loading": Waiting.VECTOR_READ,
    "router_busy": Waiting.ROUTING,
    "storing_output": Waiting.OUTPUT_WRITE,
}
"""What other blocks wait for."""


def sizes(data_bits: int) -> Arch:
    return Arch(columns=16, data_bits=data_bits, vector_blocks=256, max_tokens=4, slots=2, max_experts=16,
                max_top_k=4, logit_words=4, combine_elements=1024)  # fmt: skip


class Neighbours:
    """Memory, scheduler and writer; ``log`` holds what they were asked for, in order."""

    def __init__(self, dut: Any, pattern: streams.Pattern = streams.always):
        self.dut = dut
        self.arch = sizes(int(parameter("data_bits")))
        self.memory = bytearray(random.randbytes(MEMORY_BYTES))
        self.errors: set[int] = set()
        self.log: list[Any] = []
        self.completions: list[dict[str, int]] = []
        self.submitted = 0
        self.pattern = pattern
        self.tasks: list[Any] = []

    async def start(self) -> None:
        """Reset the block and go to work."""
        dut = self.dut
        for name in ("tail", *AFTER, *OTHERS, "completion__ready", "ranges__ready", "words__valid"):
            getattr(dut, name).value = 0
        dut.computed.value = dut.written.value = 1
        dut.ring_base.value, dut.ring_mask.value = RING_BASE, RING - 1
        self.counters = {word.name: random.getrandbits(32) for word in COUNTERS}
        self.experts_used = random.randrange(1 << 16)
        dut.counters.value = sum(value << 32 * index for index, value in enumerate(self.counters.values()))
        dut.experts_used.value = self.experts_used
        await streams.reset(dut)
        self.go(serve_reads(dut, self.arch, self.memory, self.pattern, self.errors))
        self.go(self.watch())

    def go(self, coroutine: Any) -> None:
        self.tasks.append(cocotb.start_soon(coroutine))

    def stop(self) -> None:
        for task in self.tasks:
            task.cancel()

    def submit(self, layer: dict[str, int] | None = None, **words: int) -> dict[str, int]:
        """Place a command and a layer of its own in memory; the ring's tail stays where it is."""
        number = self.submitted
        place = LAYERS + 4 * (number % RING)
        addresses = {name: random.randrange(1 << 20) for name in ("input", "hidden", "output", "routing", "completion")}
        command = {
            "magic": COMMAND_MAGIC, "tokens": 4, "layer": place, "slots": 2, "chunk_blocks": 2,
            "chunk_stride": random.randrange(1 << 22), "shared_chunk_stride": random.randrange(1 << 22), **addresses,
            **words,
        }  # fmt: skip
        self.write(RING_BASE + number % RING, COMMAND.pack(command).tobytes())
        self.write(place, LAYER.pack({**LAYER_WORDS, **(layer or {})}).tobytes())
        self.submitted += 1
        return command

    def write(self, place: int, data: bytes) -> None:
        self.memory[place * SEGMENT_ALIGN : place * SEGMENT_ALIGN + len(data)] = data

    async def watch(self) -> None:
        """Log every pulse and range; scheduler and writer answer after a while."""
        dut = self.dut
        active = self.pattern()
        while True:
            dut.ranges__ready.value = int(next(active))
            await ReadOnly()
            events = {name for name in ("starting", "compute", "read_routing") if int(getattr(dut, name).value)}
            taken = int(dut.ranges__valid.value) and int(dut.ranges__ready.value)
            wanted = streams.unpack(range_layout(self.arch), int(dut.ranges__payload.value)) if taken else {}
            if "compute" in events:
                self.layer = streams.unpack(layer_layout(), int(dut.layer.value))
                names = ("layer", "input", "hidden", "output")
                addresses = [int(getattr(dut, f"{name}_address").value) for name in names]
            await RisingEdge(dut.clk)
            if "starting" in events:
                self.log.append("starting")
            if "compute" in events:
                self.log.append(("compute", *addresses))
                self.dut.computed.value = 0
                self.go(self.answer("computed"))
            assert taken or "read_routing" not in events
            if taken:
                what = "routing" if "read_routing" in events else "completion"
                self.log.append((what, wanted["address"], wanted["words"]))
                self.dut.written.value = 0
                self.go(self.take(what))

    async def answer(self, name: str) -> None:
        await ClockCycles(self.dut.clk, random.choice([1, 2, 20]))
        getattr(self.dut, name).value = 1

    async def take(self, what: str) -> None:
        """The writer gets its words from where it is told to."""
        dut = self.dut
        if what == "completion":
            words = await streams.receive(dut, "completion", 32, COMPLETION.size, self.pattern)
            self.completions.append(COMPLETION.unpack(words))
        for _ in range(random.choice([1, 2, 20])):
            await ReadOnly()
            assert int(dut.writing_routing.value) == (what == "routing")
            assert int(dut.writing_completion.value) == (what == "completion")
            await RisingEdge(dut.clk)
        dut.written.value = 1

    async def until_head(self, head: int) -> int:
        """Status when so many commands are completed."""
        while int(self.dut.head.value) != head:
            await RisingEdge(self.dut.clk)
        return int(self.dut.status.value)

    async def run(self, layer: dict[str, int] | None = None, **words: int) -> tuple[dict[str, int], int]:
        """Submit one command and wait for its end: the command and its status."""
        command = self.submit(layer, **words)
        self.log.clear()
        self.dut.tail.value = self.submitted
        return command, await self.until_head(self.submitted)

    def bus_words(self, words: int) -> int:
        return -(-words * 32 // self.arch.data_bits)

    def full_batch(self, command: dict[str, int], layer: dict[str, int] | None = None) -> list[Any]:
        """The log of a command that is not refused."""
        layer = {**LAYER_WORDS, **(layer or {})}
        entries = command["tokens"] * (layer["top_k"] + (layer["shared_blocks"] != 0))
        return [
            "starting",
            ("compute", *(command[name] for name in ("layer", "input", "hidden", "output"))),
            ("routing", command["routing"], self.bus_words(2 * entries)),
            ("completion", command["completion"], self.bus_words(COMPLETION.size)),
        ]

    def refused(self, command: dict[str, int]) -> list[Any]:
        return ["starting", ("completion", command["completion"], self.bus_words(COMPLETION.size))]


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(pattern=list(streams.PATTERNS))
async def steps_in_order(dut: Any, pattern: str) -> None:
    """Twice around the ring: the steps, the layer, and what the completion record says."""
    await streams.start(dut)
    around = Neighbours(dut, streams.PATTERNS[pattern])
    await around.start()
    for number in range(2 * RING + 1):
        layer = {"expert_down": random.randrange(1 << 22), "router_exponent": random.randint(-2048, 2047)}
        command, status = await around.run(layer, tokens=random.randint(1, 4))
        assert status == Status.OK
        assert around.log == around.full_batch(command)
        want = {**LAYER_WORDS, **layer, **{name: command[name] for name in CUT_WORDS}}
        assert around.layer == {name: want.get(name, 0) for name in around.layer}
        assert around.completions.pop() == {
            "status": Status.OK, "sequence": number, **around.counters, "experts_used": around.experts_used,
        }  # fmt: skip


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def refused_before_the_batch(dut: Any) -> None:
    """Every check; a good command after each one."""
    await streams.start(dut)
    around = Neighbours(dut)
    await around.start()
    for want, layer, words in BEFORE:
        command, status = await around.run(layer, **words)
        assert status == want, f"{layer} {words}"
        assert around.log == around.refused(command)
        assert around.completions[-1]["status"] == want
        command, status = await around.run()
        assert status == Status.OK and around.log == around.full_batch(command)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_largest_sizes_are_not_refused(dut: Any) -> None:
    await streams.start(dut)
    around = Neighbours(dut)
    await around.start()
    for layer, words in LARGEST:
        command, status = await around.run(layer, **words)
        assert status == Status.OK, f"{layer} {words}"
        assert around.log == around.full_batch(command, layer)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def unreadable_records(dut: Any) -> None:
    """Without a trusted command there is no completion record, but ``head`` and ``status`` tell."""
    await streams.start(dut)
    around = Neighbours(dut)
    await around.start()
    _, status = await around.run(magic=COMMAND_MAGIC ^ 1)
    assert status == Status.BAD_COMMAND and around.log == ["starting"]

    around.errors.add((RING_BASE + around.submitted % RING) * SEGMENT_ALIGN)
    _, status = await around.run()
    assert status == Status.COMMAND_READ_ERROR and around.log == ["starting"]
    around.errors.clear()

    around.errors.add((LAYERS + 4 * (around.submitted % RING) + 1) * SEGMENT_ALIGN)
    command, status = await around.run()
    assert status == Status.LAYER_READ_ERROR and around.log == around.refused(command)
    around.errors.clear()
    command, status = await around.run()
    assert status == Status.OK and around.log == around.full_batch(command)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def errors_after_the_batch(dut: Any) -> None:
    """All sets of flags: the batch runs to its end and the first flag wins; a refusal wins over all."""
    await streams.start(dut)
    around = Neighbours(dut)
    await around.start()
    for chosen in range(1 << len(AFTER)):
        flags = [name for index, name in enumerate(AFTER) if chosen >> index & 1]
        for name in AFTER:
            getattr(dut, name).value = int(name in flags)
        want = AFTER[flags[0]] if flags else Status.OK
        command, status = await around.run()
        assert status == want and around.completions[-1]["status"] == want
        assert around.log == around.full_batch(command)
    assert (await around.run({"top_k": 0}))[1] == Status.BAD_TOP_K


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def tail_runs_ahead(dut: Any) -> None:
    """A full ring at once: commands are completed in order, one at a time; none is begun beyond the tail."""
    await streams.start(dut)
    around = Neighbours(dut, streams.PATTERNS["sometimes"])
    await around.start()
    for _ in range(3):
        around.log.clear()
        commands = [around.submit() for _ in range(RING)]
        dut.tail.value = around.submitted
        await around.until_head(around.submitted)
        assert around.log == [event for command in commands for event in around.full_batch(command)]
        await ClockCycles(dut.clk, 50)
        assert int(dut.head.value) == around.submitted and around.log[-1][0] == "completion"
    assert [completion["sequence"] for completion in around.completions] == list(range(3 * RING))


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def state_and_phases(dut: Any) -> None:
    """Every waiting bit is seen, the parts of a command do not overlap, and idle is idle."""
    await streams.start(dut)
    around = Neighbours(dut)
    await around.start()
    await ClockCycles(dut.clk, 5)
    assert int(dut.state.value) == 0
    seen = Waiting(0)
    parts = ["setting_up", "computing", "storing"]
    order = []
    task = cocotb.start_soon(around.run())
    while not task.done():
        await ReadOnly()
        seen |= Waiting(int(dut.state.value))
        active = [name for name in parts if int(getattr(dut, name).value)]
        assert len(active) <= 1
        if active and order[-1:] != active:
            order += active
        await RisingEdge(dut.clk)
    assert order == parts
    outside = sum(OTHERS.values())
    assert seen == sum(Waiting) - outside
    for name, flag in OTHERS.items():
        getattr(dut, name).value = 1
        await ClockCycles(dut.clk, 2)
        assert int(dut.state.value) == flag
        getattr(dut, name).value = 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    """After a reset at any time the ring begins at command 0."""
    await streams.start(dut)
    for _ in range(12):
        around = Neighbours(dut)
        await around.start()
        around.submit()
        dut.tail.value = 1
        await ClockCycles(dut.clk, random.randint(1, 120))
        around.stop()
        around = Neighbours(dut)
        await around.start()
        assert int(dut.head.value) == int(dut.status.value) == int(dut.state.value) == 0
        command, status = await around.run()
        assert status == Status.OK and around.log == around.full_batch(command)
        around.stop()


@pytest.mark.parametrize("data_bits", [32, 512])
def test_command(data_bits: int) -> None:
    run_bench(Command(sizes(data_bits)), __name__, data_bits=data_bits)
