"""The correction table: loaded through any bus width, then read."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from moe_hw.arch import SEGMENT_ALIGN, Arch
from moe_hw.registers import LAYER
from rtl_gen.correction import ENTRY_BITS, Correction
from rtl_gen.types import layer_layout
from sim.bench.memory import serve_reads
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, always, interrupt, pack, start, unpack_signed

MEMORY_LINES = 64


def sizes(data_bits: int) -> Arch:
    return Arch(columns=32, data_bits=data_bits, max_experts=64)


@pytest.mark.parametrize("data_bits", [32, 64, 512])
def test_correction(data_bits: int) -> None:
    run_bench(Correction(sizes(data_bits)), __name__, data_bits=data_bits)


def bench_arch() -> Arch:
    return sizes(int(parameter("data_bits")))


class Layer:
    """A random table behind a descriptor."""

    def __init__(self, experts: int | None = None):
        self.experts = experts or random.choice([1, 2, 15, 17, bench_arch().max_experts])
        generator = np.random.default_rng(random.getrandbits(32))
        self.memory = generator.bytes(MEMORY_LINES * SEGMENT_ALIGN)
        self.address = random.randrange(MEMORY_LINES - (LAYER.size_bytes + 4 * self.experts) // SEGMENT_ALIGN)
        first = self.address * SEGMENT_ALIGN + LAYER.size_bytes
        self.first_byte = first
        self.table = np.frombuffer(self.memory, "<i4", self.experts, first).tolist()

    async def run(self, dut: Any, stall: Any = always, fault: bool = False) -> None:
        arch = bench_arch()
        words = {"experts": self.experts, "correction": random.randint(1, 2)}
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
                dut.expert.value = expert
                await RisingEdge(dut.clk)
                await ReadOnly()
                assert unpack_signed(int(dut.correction.value), ENTRY_BITS) == self.table[expert]
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
async def a_layer_without_a_table_reads_none(dut: Any) -> None:
    await begin(dut)
    dut.layer.value, dut.start.value = pack(layer_layout(), {"experts": 5, "correction": 0}), 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    for _ in range(20):
        await ReadOnly()
        assert int(dut.loaded.value) and not int(dut.bursts__valid.value)
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def an_expert_a_cycle(dut: Any) -> None:
    """The cycles that the docstring promises, of a memory that answers at once."""
    await begin(dut)
    layer = Layer(bench_arch().max_experts)
    work = cocotb.start_soon(layer.run(dut))
    cycles = 0
    await ClockCycles(dut.clk, 2)
    while not int(dut.loaded.value):
        await RisingEdge(dut.clk)
        cycles += 1
    await with_timeout(work, 100, "us")
    assert cycles <= layer.experts + 5 + 20  # the bench's memory


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    for _ in range(8):
        await interrupt(dut, cocotb.start_soon(Layer(bench_arch().max_experts).run(dut)), "start", "words__valid")
        await Layer().run(dut)
