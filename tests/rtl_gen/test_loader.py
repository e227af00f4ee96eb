"""The loader: vectors arrive line by line, in order, on any bus width."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotb.utils import get_sim_time

from moe_hw.arch import ROWS, SEGMENT_ALIGN, Arch
from rtl_gen.loader import FETCHES, Loader, line_layout
from rtl_gen.types import fetch_layout, layer_layout
from sim.bench import streams
from sim.bench.memory import serve_reads
from sim.bench.runner import parameter, run_bench

UNITS = 256
"""Lines of the memory."""


def sizes(data_bits: int) -> Arch:
    """A column group makes half a block of hidden activations, or two; of a two-layer expert, twice that."""
    columns = {32: 32, 512: 128}[data_bits]
    return Arch(columns=columns, data_bits=data_bits, burst_bytes=256, max_tokens=8, slots=4)


def random_memory() -> bytes:
    """Lines with exponents of 12 bits; what is not used is garbage."""
    lines = [
        random.randbytes(ROWS)
        + random.randint(-2048, 2047).to_bytes(2, "little", signed=True)
        + random.randbytes(SEGMENT_ALIGN - ROWS - 2)
        for _ in range(UNITS)
    ]
    return b"".join(lines)


def random_job(arch: Arch, slots: int, blocks: int, router: int) -> list[dict]:
    """Inputs for ``slots`` vectors of ``blocks`` blocks."""
    half = random.randrange(2)
    return [
        {
            "address": random.randint(0, UNITS - blocks * (1 + router)), "lines": blocks * (1 + router),
            "blocks": blocks, "hidden": 0, "half": half, "slot": slot,
            "token": random.randrange(arch.max_tokens), "last": int(slot == slots - 1),
        }
        for slot in range(slots)
    ]  # fmt: skip


def hidden_job(arch: Arch, slots: int, blocks: int) -> list[dict]:
    """Hidden activations of ``slots`` vectors of ``blocks`` blocks."""
    return [{
        "address": random.randint(0, UNITS - slots * blocks), "lines": slots * blocks, "blocks": blocks,
        "hidden": 1, "half": random.randrange(2), "slot": slots - 1, "token": 0, "last": 1,
    }]  # fmt: skip


def order_of(arch: Arch, gated: int, fetch: dict) -> list[tuple[int, int]]:
    """(slot, block) of the lines of a fetch."""
    if not fetch["hidden"]:
        return [(fetch["slot"], block) for block in range(fetch["lines"])]
    span = max(1, arch.columns // (64 if gated else 32))
    return [
        (slot, block)
        for first in range(0, fetch["blocks"], span)
        for slot in range(fetch["slot"] + 1)
        for block in range(first, min(first + span, fetch["blocks"]))
    ]


def lines_of(arch: Arch, gated: int, memory: bytes, fetches: list[dict]) -> list[dict]:
    lines = []
    for fetch in fetches:
        order = order_of(arch, gated, fetch)
        blocks = fetch["blocks"] if fetch["hidden"] else fetch["lines"]
        for number, (slot, block) in enumerate(order):
            at = (fetch["address"] + number) * SEGMENT_ALIGN
            lines.append(
                {
                    "mantissas": list(memory[at : at + ROWS]),
                    "exponent": int.from_bytes(memory[at + ROWS : at + ROWS + 2], "little", signed=True),
                    **{name: fetch[name] for name in ("half", "token")},
                    "input": 1 - fetch["hidden"],
                    "slot": slot,
                    "place": slot * blocks + block,
                    "start": int(block == 0),
                    "counts": int(block < fetch["blocks"]),
                    "last": int(fetch["last"] and number == len(order) - 1),
                }
            )
    return lines


async def watch(dut, arch: Arch, lines: list[dict], times: list[int]) -> None:
    """Appends the lines that come, and when, forever."""
    while True:
        await ReadOnly()
        if int(dut.valid.value):
            lines.append(streams.unpack(line_layout(arch), int(dut.line.value)))
            times.append(round(get_sim_time("ns") / 10))
        await RisingEdge(dut.clk)


async def load(dut, arch: Arch, fetches: list[dict], idle=streams.always, stall=streams.always,
               fault: bool = False) -> list[int]:
    """Fetch vectors from a memory; with a ``fault`` the first line answers errors. Returns when the lines came."""
    memory, gated = random_memory(), random.randrange(2)
    dut.layer.value = streams.pack(layer_layout(), {"gated": gated})
    errors = {fetches[0]["address"] * SEGMENT_ALIGN} if fault else set()
    dut.clear.value = 1
    await RisingEdge(dut.clk)
    dut.clear.value = 0
    got: list[dict] = []
    times: list[int] = []
    tasks = [
        cocotb.start_soon(serve_reads(dut, arch, memory, stall, errors)),
        cocotb.start_soon(watch(dut, arch, got, times)),
    ]
    try:
        expected = lines_of(arch, gated, memory, fetches)
        await streams.send(dut, "fetches", fetch_layout(arch), fetches, idle)
        while len(got) < len(expected):
            await RisingEdge(dut.clk)
        await ClockCycles(dut.clk, 5)
        assert got == expected
        assert int(dut.error.value) == fault
    finally:
        for task in tasks:
            task.cancel()
    return times


async def begin(dut) -> Arch:
    for name in ("fetches__valid", "bursts__ready", "words__valid", "clear"):
        getattr(dut, name).value = 0
    await streams.start(dut)
    return sizes(int(parameter("data_bits")))


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def jobs_in_a_row(dut, idle, stall):
    """More fetches than can be on their way, of inputs and of hidden activations."""
    arch = await begin(dut)
    shapes = [(1, 1, 0), (1, 1, 1), (4, 1, 0), (3, 5, 1), (2, 7, 0), (4, 2, 1), (4, 1, 1)]
    jobs = [random_job(arch, *shape) for shape in shapes]
    jobs += [hidden_job(arch, *shape) for shape in ((1, 1), (1, 6), (4, 1), (3, 2), (2, 7), (4, 8))]
    random.shuffle(jobs)
    fetches = [fetch for job in jobs for fetch in job]
    assert len(fetches) > FETCHES
    await load(dut, arch, fetches, streams.PATTERNS[idle], streams.PATTERNS[stall])


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def latency_and_throughput(dut):
    """A word a cycle, and declared times to the burst and to the line."""
    arch = await begin(dut)
    per_line = SEGMENT_ALIGN * 8 // arch.data_bits
    fetches = random_job(arch, 4, 20, 1)
    for fetch in fetches:  # bursts of one word come every other cycle
        fetch["address"] -= fetch["address"] % (arch.burst_bytes // SEGMENT_ALIGN)
    times = await load(dut, arch, fetches)
    assert times[-1] - times[0] == (len(times) - 1) * per_line

    dut.bursts__ready.value, dut.words__valid.value = 1, 0
    fetch = {"address": 3, "lines": 1, "blocks": 1, "slot": 0, "last": 1}
    sending = cocotb.start_soon(streams.send(dut, "fetches", fetch_layout(arch), [fetch]))
    await sending
    cycles = 1
    while not int(dut.bursts__valid.value):
        await RisingEdge(dut.clk)
        cycles += 1
    assert cycles == 4
    dut.words__valid.value = 1
    await ClockCycles(dut.clk, per_line)
    dut.words__valid.value = 0
    await ReadOnly()
    assert int(dut.valid.value)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def an_error_is_kept_until_cleared(dut):
    arch = await begin(dut)
    await load(dut, arch, random_job(arch, 2, 2, 0), fault=True)
    assert int(dut.error.value)
    await load(dut, arch, random_job(arch, 1, 2, 1))


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def reset_in_flight(dut):
    """Among fetches, words and lines, with and without an error before."""
    arch = await begin(dut)
    for number in range(10):
        job = random.choice([random_job(arch, 4, 3, 1), hidden_job(arch, 4, 6)])
        working = cocotb.start_soon(load(dut, arch, job, fault=number % 2 == 1))
        await ClockCycles(dut.clk, random.randint(3, 100))
        await streams.interrupt(dut, working, "fetches__valid", "bursts__ready", "words__valid", "clear")
        assert int(dut.valid.value) == int(dut.error.value) == 0
        await load(dut, arch, random_job(arch, 3, 1, 0), stall=streams.PATTERNS["sometimes"])


@pytest.mark.parametrize("data_bits", [32, 512])
def test_loader(data_bits: int) -> None:
    run_bench(Loader(sizes(data_bits)), __name__, data_bits=data_bits)
