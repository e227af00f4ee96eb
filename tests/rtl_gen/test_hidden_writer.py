"""Hidden activations become lines of memory, one after the other; what is of no use is dropped, and jobs end."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotb.utils import get_sim_time

from moe_hw.arch import ROWS, SEGMENT_ALIGN, Arch
from rtl_gen.bus import range_layout
from rtl_gen.hidden_writer import HiddenWriter
from rtl_gen.types import hidden_block_layout, layer_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, always, interrupt, pack, receive, send, start
from tests.rtl_gen.neighbours import pulse

STEPS = SEGMENT_ALIGN // 4


@pytest.mark.parametrize(("columns", "data_bits", "lanes"), [(4, 32, 1), (8, 128, 2), (64, 512, 16)])
def test_hidden_writer(columns: int, data_bits: int, lanes: int) -> None:
    arch = sizes(columns, data_bits, lanes)
    run_bench(HiddenWriter(arch), __name__, columns=columns, data_bits=data_bits, lanes=lanes)


def sizes(columns: int, data_bits: int, lanes: int) -> Arch:
    return Arch(columns=columns, data_bits=data_bits, lanes=lanes)


def random_job(arch: Arch, layer: dict[str, int], slots: int) -> list[dict[str, Any]]:
    """Blocks of a job; columns beyond 64 make blocks of padding, here one or two of them whatever the columns."""
    shared = random.randrange(2) if layer["shared_blocks"] else 0
    blocks = layer["shared_blocks" if shared else "inter_blocks"] + random.randrange(3)
    unused = int(random.random() < 0.2)
    job = [
        {
            "unused": unused, "shared": shared, "block": block, "exponent": random.randint(-2048, 2047), "last": 0,
            "mantissas": [random.randint(-127, 127) for _ in range(ROWS)],
        }
        for block in range(blocks) for _ in range(slots)
    ]  # fmt: skip
    job[-1]["last"] = 1
    return job


class Bench:
    """The block, and a count of the pulses of ``job_done``."""

    def __init__(self, dut: Any):
        self.dut = dut
        self.arch = sizes(*(int(parameter(name)) for name in ("columns", "data_bits", "lanes")))
        self.done = 0

    async def start(self) -> None:
        for name in ("blocks__valid", "restart", "ranges__ready", "values__ready"):
            getattr(self.dut, name).value = 0
        await start(self.dut)
        cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        while True:
            await ReadOnly()
            self.done += int(self.dut.job_done.value)
            await RisingEdge(self.dut.clk)

    def runs_of(self, jobs: list[list[dict[str, Any]]], layer: dict[str, int], address: int) -> list[dict[str, int]]:
        """Ranges of a sequence of jobs: cut where a burst would be, and at the end of each job."""
        run = self.arch.run_lines
        ranges = []
        for job in jobs:
            first = address
            for block in job:
                if is_kept(block, layer):
                    address += 1
                    if address % run == 0:
                        ranges.append((first, address))
                        first = address
            if not (is_kept(job[-1], layer) and address % run == 0):
                ranges.append((first, address))
        words = SEGMENT_ALIGN * 8 // self.arch.data_bits
        return [{"address": first, "words": (end - first) * words} for first, end in ranges]

    async def run(self, count: int, slots: int, idle=always, pressure=always) -> None:
        """``count`` jobs of ``slots`` vectors."""
        arch, value_bits = self.arch, 32 * self.arch.lanes
        layer = {"inter_blocks": random.randint(1, 5), "shared_blocks": random.choice([0, 3, 6])}
        address = random.randrange(1 << 12)
        self.dut.layer.value, self.dut.address.value = pack(layer_layout(), layer), address
        await pulse(self.dut, "restart")
        jobs = [random_job(arch, layer, slots) for _ in range(count)]
        blocks = [block for job in jobs for block in job]
        kept = [block for block in blocks if is_kept(block, layer)]
        runs = self.runs_of(jobs, layer, address)
        self.done = 0
        sending = cocotb.start_soon(send(self.dut, "blocks", hidden_block_layout(arch), blocks, idle))
        ranging = cocotb.start_soon(receive(self.dut, "ranges", range_layout(arch), len(runs), pressure))
        try:
            values = await receive(self.dut, "values", value_bits, len(kept) * STEPS // arch.lanes, pressure)
            assert await ranging == runs
            await sending
        finally:
            sending.cancel(), ranging.cancel()
        lines = b"".join(value.to_bytes(value_bits // 8, "little") for value in values)
        for number, block in enumerate(kept):
            line = lines[number * SEGMENT_ALIGN : (number + 1) * SEGMENT_ALIGN]
            assert line[:ROWS] == bytes(mantissa & 0xFF for mantissa in block["mantissas"])
            assert int.from_bytes(line[ROWS : ROWS + 2], "little", signed=True) == block["exponent"]
            assert not any(line[ROWS + 2 :])
        await ClockCycles(self.dut.clk, 10)
        assert self.done == count


def is_kept(block: dict[str, Any], layer: dict[str, int]) -> bool:
    return not block["unused"] and block["block"] < layer["shared_blocks" if block["shared"] else "inter_blocks"]


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS), pressure=list(PATTERNS))
async def jobs_in_a_row(dut: Any, idle: str, pressure: str) -> None:
    bench = Bench(dut)
    await bench.start()
    for jobs, slots in ((1, 1), (2, 3), (3, 1), (2, 9)):
        await bench.run(jobs, slots, PATTERNS[idle], PATTERNS[pressure])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def latency_and_throughput(dut: Any) -> None:
    bench = Bench(dut)
    await bench.start()
    arch = bench.arch
    dut.layer.value = pack(layer_layout(), {"inter_blocks": 400})
    blocks = [{"block": block, "mantissas": [0] * ROWS, "last": 1} for block in range(20)]
    dut.ranges__ready.value = dut.values__ready.value = 1
    begin = get_sim_time("ns")
    await send(dut, "blocks", hidden_block_layout(arch), blocks[:1])
    while not int(dut.ranges__valid.value):
        await RisingEdge(dut.clk)
    assert round((get_sim_time("ns") - begin) / 10) == 1 + 3
    await ClockCycles(dut.clk, 40)
    bench.done = 0
    cocotb.start_soon(send(dut, "blocks", hidden_block_layout(arch), blocks * 8))
    times: list[int] = []
    while len(times) < len(blocks) * 8:
        await RisingEdge(dut.clk)
        if bench.done > len(times):
            times.append(round(get_sim_time("ns") / 10))
    taken = times[-1] - times[len(blocks)]  # when the queues are full
    assert taken == (len(blocks) * 7 - 1) * max(2, STEPS // arch.lanes)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_job_is_done_when_its_last_run_is_handed_over(dut: Any) -> None:
    """Also if its last block is padding."""
    bench = Bench(dut)
    await bench.start()
    dut.layer.value = pack(layer_layout(), {"inter_blocks": 1})
    for padding in (0, 1):
        bench.done = 0
        job = [{"block": block, "mantissas": [0] * ROWS, "last": int(block == padding)} for block in range(1 + padding)]
        await send(dut, "blocks", hidden_block_layout(bench.arch), job)
        await ClockCycles(dut.clk, 8)
        assert bench.done == 0
        ends = await receive(dut, "ranges", range_layout(bench.arch), 1)
        assert ends[0]["words"] == SEGMENT_ALIGN * 8 // bench.arch.data_bits
        await RisingEdge(dut.clk)
        assert bench.done == 1
        await receive(dut, "values", 32 * bench.arch.lanes, STEPS // bench.arch.lanes)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    bench = Bench(dut)
    await bench.start()
    for _ in range(10):
        working = cocotb.start_soon(bench.run(3, 3))
        await ClockCycles(dut.clk, random.randint(1, 60))
        await interrupt(dut, working, "blocks__valid", "restart", "ranges__ready", "values__ready")
        await bench.run(1, 2, always, PATTERNS["sometimes"])
