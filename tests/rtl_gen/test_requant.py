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
from rtl_gen.types import hidden_block_layout, hidden_value_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, receive, reset, send, start

Neuron = tuple[int, int, int]
"""Sign, mantissa, exponent."""


@pytest.mark.parametrize(("columns", "tokens"), [(4, 1), (32, 64)])
def test_requant(columns: int, tokens: int) -> None:
    run_bench(Requant(Arch(columns=columns, max_tokens=tokens)), __name__, columns=columns, tokens=tokens)


def bench_arch() -> Arch:
    return Arch(columns=int(parameter("columns")), max_tokens=int(parameter("tokens")))


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


def job_values(arch: Arch, job: list[list[Neuron]]) -> list[dict[str, int]]:
    """The values of a job ``[slot][neuron]`` in the order of the array: groups, slots, pairs of a group."""
    pairs = arch.columns // 2
    return [
        {
            "slot": slot,
            "neuron": neuron,
            "sign": neurons[neuron][0],
            "mantissa": neurons[neuron][1],
            "exponent": neurons[neuron][2],
            "last": int(slot == len(job) - 1 and neuron == len(neurons) - 1),
        }
        for first in range(0, len(job[0]), pairs)
        for slot, neurons in enumerate(job)
        for neuron in range(first, first + pairs)
    ]


def job_blocks(job: list[list[Neuron]]) -> list[dict[str, Any]]:
    blocks = []
    for block in range(len(job[0]) // ROWS):
        for slot, neurons in enumerate(job):
            part = neurons[block * ROWS : (block + 1) * ROWS]
            mantissas, exponents = requantise(*zip(*part, strict=True))
            last = slot == len(job) - 1 and (block + 1) * ROWS == len(neurons)
            blocks.append(
                {
                    "slot": slot,
                    "block": block,
                    "exponent": int(exponents[0]),
                    "mantissas": mantissas[0].tolist(),
                    "last": int(last),
                }
            )
    return blocks


def random_job(slots: int, blocks: int) -> list[list[Neuron]]:
    return [[neuron for _ in range(blocks) for neuron in random_block()] for _ in range(slots)]


async def check(dut: Any, jobs: list[list[list[Neuron]]], idle: str, pressure: str) -> None:
    arch = bench_arch()
    values = [value for job in jobs for value in job_values(arch, job)]
    blocks = [block for job in jobs for block in job_blocks(job)]
    cocotb.start_soon(send(dut, "values", hidden_value_layout(arch), values, PATTERNS[idle]))
    out = await receive(dut, "blocks", hidden_block_layout(arch), len(blocks), PATTERNS[pressure])
    for number, (got, want) in enumerate(zip(out, blocks, strict=True)):
        assert got == want, f"block {number}"


def slot_counts(arch: Arch) -> list[int]:
    return sorted({1, min(3, arch.max_tokens), arch.max_tokens})


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS), pressure=list(PATTERNS))
async def jobs_in_a_row(dut: Any, idle: str, pressure: str) -> None:
    await start(dut)
    shapes = [(slots, blocks) for slots in slot_counts(bench_arch()) for blocks in (1, 2, 3)]
    random.shuffle(shapes)
    await check(dut, [random_job(*shape) for shape in shapes[:5]], idle, pressure)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def one_value_a_cycle(dut: Any) -> None:
    """The flush keeps up with the source, also from one job to the next."""
    await start(dut)
    for slots in slot_counts(bench_arch()):
        begin = get_sim_time("ns")
        await check(dut, [random_job(slots, 2), random_job(slots, 3)], "always", "always")
        cycles = round((get_sim_time("ns") - begin) / 10)
        if slots == 1:
            assert cycles == 5 * ROWS + LATENCY
        assert cycles <= (5 + 1) * slots * ROWS + LATENCY - ROWS


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def slow_sink_stops_the_source(dut: Any) -> None:
    """With nothing taken, values wait once both halves of the slots are full."""
    await start(dut)
    arch = bench_arch()
    job = random_job(slot_counts(arch)[-1], 4)
    sender = cocotb.start_soon(send(dut, "values", hidden_value_layout(arch), job_values(arch, job)))
    dut.blocks__ready.value = 0
    await ClockCycles(dut.clk, 4 * ROWS * len(job) + 100)
    assert not sender.done()
    blocks = job_blocks(job)
    assert await receive(dut, "blocks", hidden_block_layout(arch), len(blocks)) == blocks


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await start(dut)
    arch = bench_arch()
    job = random_job(slot_counts(arch)[-1], 2)
    for _ in range(4):
        dut.blocks__ready.value = random.randrange(2)
        values = job_values(arch, job)
        sender = cocotb.start_soon(send(dut, "values", hidden_value_layout(arch), values))
        await ClockCycles(dut.clk, random.randint(2, len(values) + 30))
        sender.cancel()
        dut.values__valid.value = 0
        await reset(dut)
        await check(dut, [job], "always", "sometimes")
