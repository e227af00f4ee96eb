"""The tables of the experts: loaded through any bus width, then read."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from moe_hw.arch import SEGMENT_ALIGN, Arch
from moe_hw.registers import LAYER
from rtl_gen.expert_tables import ENTRY_BITS, ExpertTables
from rtl_gen.types import layer_layout
from sim.bench.memory import serve_reads
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, always, interrupt, pack, start, unpack_signed

MEMORY_LINES = 64


def sizes(data_bits: int) -> Arch:
    return Arch(columns=32, data_bits=data_bits, max_experts=64)


@pytest.mark.parametrize("data_bits", [32, 64, 512])
def test_expert_tables(data_bits: int) -> None:
    run_bench(ExpertTables(sizes(data_bits)), __name__, data_bits=data_bits)


def bench_arch() -> Arch:
    return sizes(int(parameter("data_bits")))


class Layer:
    """Random tables behind a descriptor, of a layer with corrections or without."""

    def __init__(self, experts: int | None = None, corrected: bool | None = None):
        self.experts = experts or random.choice([1, 2, 15, 16, 17, bench_arch().max_experts])
        self.corrected = random.random() < 0.5 if corrected is None else corrected
        generator = np.random.default_rng(random.getrandbits(32))
        self.memory = generator.bytes(MEMORY_LINES * SEGMENT_ALIGN)
        self.lines = -(-self.experts * ENTRY_BITS // 8 // SEGMENT_ALIGN)
        self.address = random.randrange(MEMORY_LINES - LAYER.size_bytes // SEGMENT_ALIGN - 2 * self.lines)
        self.first_byte = self.address * SEGMENT_ALIGN + LAYER.size_bytes
        second = self.first_byte + self.lines * SEGMENT_ALIGN
        self.entries = np.frombuffer(self.memory, "<u4", self.experts, self.first_byte).tolist()
        self.corrections = np.frombuffer(self.memory, "<i4", self.experts, second).tolist()

    @property
    def words(self) -> int:
        return self.lines * (1 + self.corrected) * SEGMENT_ALIGN * 8 // bench_arch().data_bits

    async def run(self, dut: Any, stall: Any = always, fault: bool = False) -> None:
        arch = bench_arch()
        words = {"experts": self.experts, "correction": random.randint(1, 2) if self.corrected else 0}
        dut.layer.value, dut.address.value = pack(layer_layout(), words), self.address
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
                other = random.randrange(self.experts)
                dut.expert.value, dut.corrected.value = expert, other
                await RisingEdge(dut.clk)
                await ReadOnly()
                assert int(dut.entry.value) == self.entries[expert]
                correction = unpack_signed(int(dut.correction.value), ENTRY_BITS)
                assert not self.corrected or correction == self.corrections[other]
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
async def layers_in_a_row(dut: Any, stall: str) -> None:
    await begin(dut)
    for number in range(8):
        await Layer().run(dut, PATTERNS[stall], fault=number == 3)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_bus_word_a_cycle(dut: Any) -> None:
    """The cycles that the docstring promises, of a memory that answers at once."""
    await begin(dut)
    layer = Layer(bench_arch().max_experts, corrected=True)
    work = cocotb.start_soon(layer.run(dut))
    cycles = 0
    await ClockCycles(dut.clk, 2)
    while not int(dut.loaded.value):
        await RisingEdge(dut.clk)
        cycles += 1
    await with_timeout(work, 100, "us")
    assert cycles <= layer.words + 5 + 20  # the bench's memory


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    for _ in range(8):
        await interrupt(dut, cocotb.start_soon(Layer(bench_arch().max_experts).run(dut)), "start", "words__valid")
        await Layer().run(dut)
