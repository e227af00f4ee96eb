"""Re-quantising hidden activations to blocks, against the integer twin."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles
from cocotb.utils import get_sim_time

from moe_hw.arch import EXP_MIN, ROWS, Arch
from moe_hw.twins.post import requantise
from rtl_gen.requant import LATENCY, Requant
from rtl_gen.types import hidden_block_layout, hidden_values_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, receive, reset, send, start

Neuron = tuple[int, int, int]
"""Sign, mantissa, exponent."""


@pytest.mark.parametrize(("columns", "slots", "lanes"), [(4, 1, 1), (8, 8, 2), (128, 4, 4)])
def test_requant(columns: int, slots: int, lanes: int) -> None:
    run_bench(Requant(sizes(columns, slots, lanes)), __name__, columns=columns, slots=slots, lanes=lanes)


def sizes(columns: int, slots: int, lanes: int) -> Arch:
    return Arch(columns=columns, slots=slots, lanes=lanes, data_bits=32 * lanes, max_tokens=64)


def bench_arch() -> Arch:
    return sizes(*(int(parameter(name)) for name in ("columns", "slots", "lanes")))


def random_neuron(spread: int) -> Neuron:
    if random.random() < 0.2:
        return random.randrange(2), 0, EXP_MIN
    mantissa = random.choice([1 << 15, (1 << 16) - 1, random.randrange(1 << 15, 1 << 16)])
    return random.randrange(2), mantissa, random.randint(-spread, spread)


def random_block() -> list[Neuron]:
    kind = random.randrange(4)
    if kind == 0:
        return [(0, 0, EXP_MIN)] * ROWS
    if kind == 1:
        block = [(1, 0, EXP_MIN)] * ROWS
        block[random.randrange(ROWS)] = random_neuron(1500)
        return block
    return [random_neuron(random.choice([0, 3, 8, 200, 1500])) for _ in range(ROWS)]


class Job:
    """A job's neurons ``[slot][neuron]``, and whether it is of use."""

    def __init__(self, arch: Arch, slots: int, blocks: int):
        self.arch = arch
        # A group of more than a block makes neurons of padding.
        blocks += -blocks % max(1, arch.columns // 2 // ROWS)
        self.neurons = [[neuron for _ in range(blocks) for neuron in random_block()] for _ in range(slots)]
        self.unused = random.randrange(2)
        self.shared = random.randrange(2)

    def _order(self, step: int) -> list[tuple[int, int]]:
        """Slots and first neurons of parts of ``step``, in the order of the array: groups, slots, then in a group."""
        group = max(step, self.arch.columns // 2)
        return [
            (slot, neuron)
            for first in range(0, len(self.neurons[0]), group)
            for slot in range(len(self.neurons))
            for neuron in range(first, first + group, step)
        ]

    def _which(self, slot: int, end: int) -> dict[str, int]:
        last = slot == len(self.neurons) - 1 and end == len(self.neurons[0])
        return {"unused": self.unused, "shared": self.shared, "last": int(last)}

    @property
    def values(self) -> list[dict[str, Any]]:
        lanes = self.arch.lanes
        names = ("sign", "mantissa", "exponent")
        return [
            {
                "slot": slot,
                "neuron": neuron,
                "values": [dict(zip(names, n, strict=True)) for n in self.neurons[slot][neuron : neuron + lanes]],
                **self._which(slot, neuron + lanes),
            }
            for slot, neuron in self._order(lanes)
        ]

    @property
    def blocks(self) -> list[dict[str, Any]]:
        blocks = []
        for slot, neuron in self._order(ROWS):
            part = self.neurons[slot][neuron : neuron + ROWS]
            mantissas, exponents = requantise(*zip(*part, strict=True))
            blocks.append(
                {
                    "block": neuron // ROWS,
                    "exponent": int(exponents[0]),
                    "mantissas": mantissas[0].tolist(),
                    **self._which(slot, neuron + ROWS),
                }
            )
        return blocks


async def check(dut: Any, jobs: list[Job], idle: str, pressure: str) -> None:
    arch = bench_arch()
    values = [value for job in jobs for value in job.values]
    blocks = [block for job in jobs for block in job.blocks]
    cocotb.start_soon(send(dut, "values", hidden_values_layout(arch), values, PATTERNS[idle]))
    out = await receive(dut, "blocks", hidden_block_layout(arch), len(blocks), PATTERNS[pressure])
    for number, (got, want) in enumerate(zip(out, blocks, strict=True)):
        assert got == want, f"block {number}"


def slot_counts(arch: Arch) -> list[int]:
    return sorted({1, min(3, arch.slots), arch.slots})


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS), pressure=list(PATTERNS))
async def jobs_in_a_row(dut: Any, idle: str, pressure: str) -> None:
    await start(dut)
    arch = bench_arch()
    shapes = [(slots, blocks) for slots in slot_counts(arch) for blocks in (1, 2, 3)]
    random.shuffle(shapes)
    await check(dut, [Job(arch, *shape) for shape in shapes[:5]], idle, pressure)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def as_many_values_a_cycle_as_lanes(dut: Any) -> None:
    """The flush keeps up with the source, also from one job to the next."""
    await start(dut)
    arch = bench_arch()
    steps = ROWS // arch.lanes
    for slots in slot_counts(arch):
        jobs = [Job(arch, slots, 2), Job(arch, slots, 4)]
        begin = get_sim_time("ns")
        await check(dut, jobs, "always", "always")
        cycles = round((get_sim_time("ns") - begin) / 10)
        if slots == 1:
            assert cycles == 6 * steps + steps + LATENCY
        assert cycles <= (6 + 1) * slots * steps + LATENCY


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def slow_sink_stops_the_source(dut: Any) -> None:
    """With nothing taken, values wait once both halves of the slots are full."""
    await start(dut)
    arch = bench_arch()
    job = Job(arch, slot_counts(arch)[-1], 4)
    sender = cocotb.start_soon(send(dut, "values", hidden_values_layout(arch), job.values))
    dut.blocks__ready.value = 0
    await ClockCycles(dut.clk, 4 * ROWS * len(job.neurons) + 100)
    assert not sender.done()
    assert await receive(dut, "blocks", hidden_block_layout(arch), len(job.blocks)) == job.blocks


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await start(dut)
    arch = bench_arch()
    job = Job(arch, slot_counts(arch)[-1], 2)
    for _ in range(4):
        dut.blocks__ready.value = random.randrange(2)
        sender = cocotb.start_soon(send(dut, "values", hidden_values_layout(arch), job.values))
        await ClockCycles(dut.clk, random.randint(2, len(job.values) + 30))
        sender.cancel()
        dut.values__valid.value = 0
        await reset(dut)
        await check(dut, [job], "always", "sometimes")
