"""A table with a word for each expert: loaded through any bus width, then read."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from moe_hw.arch import SEGMENT_ALIGN, Arch
from rtl_gen.expert_table import ENTRY_BITS, ExpertTable
from sim.bench.memory import serve_reads
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, always, interrupt, start

MEMORY_LINES = 64


def sizes(data_bits: int) -> Arch:
    return Arch(columns=32, data_bits=data_bits, max_experts=64)


@pytest.mark.parametrize("data_bits", [32, 64, 512])
def test_expert_table(data_bits: int) -> None:
    run_bench(ExpertTable(sizes(data_bits)), __name__, data_bits=data_bits)


def bench_arch() -> Arch:
    return sizes(int(parameter("data_bits")))


class Table:
    """A random table somewhere in memory."""

    def __init__(self, experts: int | None = None):
        self.experts = experts or random.choice([1, 2, 15, 17, bench_arch().max_experts])
        generator = np.random.default_rng(random.getrandbits(32))
        self.memory = generator.bytes(MEMORY_LINES * SEGMENT_ALIGN)
        size = self.experts * ENTRY_BITS // 8
        self.address = random.randrange(MEMORY_LINES - size // SEGMENT_ALIGN)
        self.first_byte = self.address * SEGMENT_ALIGN
        self.table = np.frombuffer(self.memory, "<u4", self.experts, self.first_byte).tolist()

    async def run(self, dut: Any, stall: Any = always, fault: bool = False) -> None:
        arch = bench_arch()
        dut.entries.value, dut.address.value = self.experts, self.address
        errors = {self.first_byte} if fault else set()
        server = cocotb.start_soon(serve_reads(dut, arch, self.memory, stall, errors))
        try:
            dut.start.value = 1
            await RisingEdge(dut.clk)
            dut.start.value = 0
            await RisingEdge(dut.clk)
            while not int(dut.loaded.value):
                await RisingEdge(dut.clk)
            for expert in random.sample(range(self.experts), self.experts):
                dut.expert.value = expert
                await RisingEdge(dut.clk)
                await ReadOnly()
                assert int(dut.entry.value) == self.table[expert]
                await RisingEdge(dut.clk)
            assert bool(dut.error.value) == fault
        finally:
            server.cancel()


async def begin(dut: Any) -> None:
    for name in ("start", "bursts__ready", "words__valid"):
        getattr(dut, name).value = 0
    await start(dut)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(stall=list(PATTERNS))
async def tables_in_a_row(dut: Any, stall: str) -> None:
    await begin(dut)
    for number in range(8):
        await Table().run(dut, PATTERNS[stall], fault=number == 3)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_table_without_entries_is_not_read(dut: Any) -> None:
    await begin(dut)
    dut.entries.value, dut.start.value = 0, 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    for _ in range(20):
        await ReadOnly()
        assert int(dut.loaded.value) and not int(dut.bursts__valid.value)
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_bus_word_a_cycle(dut: Any) -> None:
    """The cycles that the docstring promises, of a memory that answers at once."""
    await begin(dut)
    table = Table(bench_arch().max_experts)
    work = cocotb.start_soon(table.run(dut))
    cycles = 0
    await ClockCycles(dut.clk, 2)
    while not int(dut.loaded.value):
        await RisingEdge(dut.clk)
        cycles += 1
    await with_timeout(work, 100, "us")
    assert cycles <= table.experts * ENTRY_BITS // bench_arch().data_bits + 5 + 20  # the bench's memory


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    for _ in range(8):
        await interrupt(dut, cocotb.start_soon(Table(bench_arch().max_experts).run(dut)), "start", "words__valid")
        await Table().run(dut)
