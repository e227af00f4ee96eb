"""The command processor among fake neighbours: what a command does, in which order, and how it ends."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ROWS, SEGMENT_ALIGN, Arch
from moe_hw.registers import COMMAND, COMMAND_MAGIC, COMPLETION, COUNTERS, LAYER, LAYER_MAGIC, Status, Waiting
from rtl_gen.command import Command
from rtl_gen.types import layer_layout
from sim.bench import streams
from sim.bench.memory import serve_reads
from sim.bench.runner import parameter, run_bench

RING_BASE, LAYERS = 2, 16
RING = 4
MEMORY_BYTES = 1 << 13

LAYER_WORDS = {
    "magic": LAYER_MAGIC, "hidden_blocks": 3, "inter_blocks": 2, "shared_blocks": 1, "experts": 8, "top_k": 2,
    "normalise": 1, "shared_gate": 1, "passes": 1, "shared_passes": 2, "router_passes": 4, "expert_stride": 77,
    "router_exponent": -30, "router_shift": -3, "combine_exponent": 5,
}  # fmt: skip
BEFORE = {
    Status.BAD_LAYER: {"magic": LAYER_MAGIC + 1},
    Status.BAD_SHAPE: {"hidden_blocks": 0},
    Status.TOO_MANY_EXPERTS: {"experts": 17},
    Status.BAD_TOP_K: {"top_k": 5},
    Status.TOKEN_BUFFER_FULL: {"hidden_blocks": 32},
    Status.COMBINE_BUFFER_FULL: {"hidden_blocks": 9},
    Status.LOGIT_BUFFER_FULL: {"experts": 16},
}
"""Changes of the layer that are refused; four tokens."""
SHAPES = [{"inter_blocks": 0}, {"passes": 0}, {"router_passes": 0}, {"experts": 0}, {"shared_passes": 0},
          {"shared_blocks": 0}]  # fmt: skip
AFTER = {
    "input_error": Status.INPUT_READ_ERROR,
    "weight_error": Status.WEIGHT_READ_ERROR,
    "write_error": Status.WRITE_ERROR,
    "overflow": Status.OVERFLOW,
}
"""Flags in the order in which they win."""


def sizes(data_bits: int) -> Arch:
    return Arch(columns=16, data_bits=data_bits, token_blocks=256, max_tokens=4, max_experts=16, max_top_k=4,
                logit_words=4, combine_elements=1024)  # fmt: skip


class Neighbours:
    """Memory, loader, scheduler and writer; ``log`` holds what they were asked for, in order."""

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
        for name in ("prepared", "computed", "write_busy", "tail", *AFTER, "weights_outstanding", "router_busy"):
            getattr(dut, name).value = 0
        dut.completion__ready.value = 0
        dut.words__valid.value = 0
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
        command = {
            "magic": COMMAND_MAGIC, "tokens": 4, "layer": place, "input": random.randrange(1 << 20),
            "output": random.randrange(1 << 20), "routing": random.randrange(1 << 20),
            "completion": random.randrange(1 << 20), **words,
        }  # fmt: skip
        self.write(RING_BASE + number % RING, COMMAND.pack(command).tobytes())
        self.write(place, LAYER.pack({**LAYER_WORDS, **(layer or {})}).tobytes())
        self.submitted += 1
        return command

    def write(self, place: int, data: bytes) -> None:
        self.memory[place * SEGMENT_ALIGN : place * SEGMENT_ALIGN + len(data)] = data

    async def watch(self) -> None:
        """Log every pulse; loader, scheduler and writer answer after a while."""
        dut = self.dut
        while True:
            await ReadOnly()
            events = [name for name in ("starting", "prepare", "compute", "write") if int(getattr(dut, name).value)]
            streamed = [name for name in ("read_output", "read_routing", "writing_completion")
                        if int(getattr(dut, name).value)]
            write = int(dut.write_address.value), int(dut.write_count.value)
            inputs = int(dut.input_address.value)
            layer = streams.unpack(layer_layout(), int(dut.layer.value))
            await RisingEdge(dut.clk)
            for name in events:
                if name == "write":
                    self.log.append((*streamed, *write))
                    self.go(self.take(streamed[0]))
                else:
                    self.log.append(name)
                if name == "prepare":
                    self.log.append(inputs)
                    self.layer = layer
                    self.go(self.answer("prepared"))
                if name == "compute":
                    self.go(self.answer("computed"))

    async def answer(self, name: str) -> None:
        getattr(self.dut, name).value = 0
        await ClockCycles(self.dut.clk, random.choice([1, 2, 20]))
        getattr(self.dut, name).value = 1
        await ClockCycles(self.dut.clk, 1)
        getattr(self.dut, name).value = 0

    async def take(self, what: str) -> None:
        """The writer: busy from the cycle after its start."""
        self.dut.write_busy.value = 1
        if what == "writing_completion":
            words = await streams.receive(self.dut, "completion", 32, COMPLETION.size, self.pattern)
            self.completions.append(COMPLETION.unpack(words))
        await ClockCycles(self.dut.clk, random.choice([1, 2, 20]))
        self.dut.write_busy.value = 0

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

    def full_batch(self, command: dict[str, int]) -> list[Any]:
        """The log of a command that is not refused."""
        tokens, layer = command["tokens"], LAYER_WORDS
        return [
            "starting",
            "prepare",
            command["input"],
            "compute",
            ("read_output", command["output"], tokens * layer["hidden_blocks"] * ROWS),
            ("read_routing", command["routing"], 2 * tokens * (layer["top_k"] + 1)),
            ("writing_completion", command["completion"], COMPLETION.size),
        ]

    def refused(self, command: dict[str, int]) -> list[Any]:
        return ["starting", ("writing_completion", command["completion"], COMPLETION.size)]


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(pattern=list(streams.PATTERNS))
async def steps_in_order(dut: Any, pattern: str) -> None:
    """Twice around the ring: the steps, the layer, and what the completion record says."""
    await streams.start(dut)
    around = Neighbours(dut, streams.PATTERNS[pattern])
    await around.start()
    for number in range(2 * RING + 1):
        layer = {"expert_stride": random.randrange(1 << 22), "router_exponent": random.randint(-2048, 2047)}
        command, status = await around.run(layer, tokens=random.randint(1, 4))
        assert status == Status.OK
        assert around.log == around.full_batch(command)
        want = {**LAYER_WORDS, **layer, "tokens": command["tokens"]}
        assert around.layer == {name: want.get(name, 0) for name in around.layer}
        assert int(dut.layer_address.value) == command["layer"]
        assert around.completions.pop() == {
            "status": Status.OK, "sequence": number, **around.counters, "experts_used": around.experts_used,
        }  # fmt: skip


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def refused_before_the_batch(dut: Any) -> None:
    """Every check; a good command after each one."""
    await streams.start(dut)
    around = Neighbours(dut)
    await around.start()
    cases = [(status, layer, {}) for status, layer in BEFORE.items()]
    cases += [(Status.BAD_SHAPE, layer, {}) for layer in SHAPES]
    cases += [(Status.BAD_TOKENS, {}, {"tokens": tokens}) for tokens in (0, 5, 1 << 15)]
    cases += [(Status.BAD_TOP_K, layer, {}) for layer in ({"top_k": 0}, {"experts": 1})]
    for want, layer, words in cases:
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
    for layer in ({"experts": 15}, {"top_k": 4}, {"hidden_blocks": 8}, {"inter_blocks": 58}, {"shared_blocks": 58}):
        assert (await around.run(layer))[1] == Status.OK, layer
    for layer in ({"inter_blocks": 59}, {"shared_blocks": 59}):
        assert (await around.run(layer))[1] == Status.TOKEN_BUFFER_FULL, layer


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
        assert int(dut.head.value) == around.submitted and around.log[-1][0] == "writing_completion"
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
    outside = Waiting.WEIGHT_READ | Waiting.ROUTING
    assert seen == ~outside & sum(Waiting)
    dut.weights_outstanding.value = dut.router_busy.value = 1
    await ClockCycles(dut.clk, 2)
    assert int(dut.state.value) == outside


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
