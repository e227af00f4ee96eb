"""Float outputs of the combine buffer's sums, chunk by chunk, against the integer twin; and that they are cleared."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotb.utils import get_sim_time

from moe_hw.arch import ACC_BITS, ROWS
from moe_hw.twins.combine import to_float32
from rtl_gen.bus import range_layout
from rtl_gen.output import Output
from rtl_gen.types import layer_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, always, interrupt, pack, receive, start
from tests.rtl_gen.sums import SIZES, row_of, shapes

LARGEST = (1 << ACC_BITS - 1) - 1


@pytest.mark.parametrize("sizes", list(SIZES))
def test_output(sizes: str) -> None:
    run_bench(Output(SIZES[sizes]), __name__, sizes=sizes)


def random_word() -> int:
    return random.choice([0, 1, -1, LARGEST, -LARGEST, random.randint(-LARGEST, LARGEST) >> random.randrange(ACC_BITS)])


class Bench:
    """The block in front of a combine buffer, and counts of its pulses."""

    def __init__(self, dut: Any):
        self.dut = dut
        self.arch = SIZES[parameter("sizes")]
        self.sums = np.array([random_word() for _ in range(self.arch.combine_elements)])
        self.exponents = [0] * self.arch.max_tokens
        self.stored = 0
        self.cleared = 0

    async def start(self) -> None:
        for name in ("restart", "store", "ranges__ready", "values__ready"):
            getattr(self.dut, name).value = 0
        await start(self.dut)
        cocotb.start_soon(self._serve())

    async def _serve(self) -> None:
        dut, lanes = self.dut, self.arch.lanes
        later, read = None, None
        while True:
            await ReadOnly()
            enabled = int(dut.read__enable.value)
            address, token = int(dut.read__address.value), int(dut.read__token.value)
            self.stored += int(dut.stored.value)
            self.cleared += int(dut.clearing.value)
            await RisingEdge(dut.clk)
            if read is not None:
                dut.read__sums.value, dut.read__exponent.value = read
            read, later = later, None
            if enabled:
                words = self.sums[address * lanes : (address + 1) * lanes]
                mask = (1 << ACC_BITS) - 1
                sums = sum((int(word) & mask) << ACC_BITS * lane for lane, word in enumerate(words))
                later = sums, self.exponents[token]
                words[:] = 0

    async def pulse(self, name: str) -> None:
        getattr(self.dut, name).value = 1
        await RisingEdge(self.dut.clk)
        getattr(self.dut, name).value = 0

    async def restart(self, tokens: int, hidden_blocks: int, chunk_blocks: int, combine_exponent: int = 0) -> None:
        self.layer = {"tokens": tokens, "hidden_blocks": hidden_blocks, "chunk_blocks": chunk_blocks,
                      "combine_exponent": combine_exponent, "gated": random.randrange(2)}  # fmt: skip
        self.address = random.randrange(1 << 12)
        self.dut.layer.value, self.dut.address.value = pack(layer_layout(), self.layer), self.address
        self.base = self.cleared = 0
        await self.pulse("restart")
        await ClockCycles(self.dut.clk, 2)
        while int(self.dut.clearing.value):
            await RisingEdge(self.dut.clk)
        used = tokens * row_of(self.arch, chunk_blocks)
        assert not self.sums[:used].any()
        assert self.cleared == used // self.arch.lanes + 2

    async def chunk(self, draw: Callable[[], int] = random_word, pressure=always) -> int:
        """Fill a chunk and send it; returns the cycles to the pulse of ``stored``."""
        arch, layer = self.arch, self.layer
        tokens, row = layer["tokens"], row_of(arch, layer["chunk_blocks"])
        blocks = min(layer["chunk_blocks"], layer["hidden_blocks"] - self.base)
        rows = self.sums[: tokens * row].reshape(tokens, row)
        rows[:, : blocks * ROWS] = [[draw() for _ in range(blocks * ROWS)] for _ in range(tokens)]
        exponents = (1 + layer["gated"]) * np.array(self.exponents[:tokens])[:, None] + layer["combine_exponent"]
        floats = to_float32(rows[:, : blocks * ROWS].copy(), exponents).view(np.uint32).reshape(-1).tolist()
        expected = [
            sum(bits << 32 * lane for lane, bits in enumerate(floats[at : at + arch.lanes]))
            for at in range(0, len(floats), arch.lanes)
        ]
        ranges = [
            {"address": self.address + 2 * (token * layer["hidden_blocks"] + self.base),
             "words": blocks * ROWS * 32 // arch.data_bits}
            for token in range(tokens)
        ]  # fmt: skip
        self.stored = 0
        ranging = cocotb.start_soon(receive(self.dut, "ranges", range_layout(arch), tokens, pressure))
        receiving = cocotb.start_soon(receive(self.dut, "values", 32 * arch.lanes, len(expected), pressure))
        begin = get_sim_time("ns")
        try:
            await self.pulse("store")
            while not self.stored:
                await RisingEdge(self.dut.clk)
            cycles = round((get_sim_time("ns") - begin) / 10)
            assert await ranging == ranges
            for number, (got, want) in enumerate(zip(await receiving, expected, strict=True)):
                assert got == want, f"value {number}: {got:#x}, expected {want:#x}"
        finally:
            ranging.cancel(), receiving.cancel()
        await ClockCycles(self.dut.clk, 5)
        assert self.stored == 1
        assert not rows.any()
        self.base += layer["chunk_blocks"]
        return cycles


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(pressure=list(PATTERNS))
async def chunks_in_a_row(dut: Any, pressure: str) -> None:
    """One chunk, several whole ones, and a last one that is narrower."""
    bench = Bench(dut)
    await bench.start()
    for tokens, chunk in shapes(bench.arch):
        for hidden in (chunk, 2 * chunk, 2 * chunk + 1):
            bench.exponents = [random.randint(-30, 30) for _ in bench.exponents]
            await bench.restart(tokens, hidden, chunk, random.randint(-80, 40))
            for _ in range(-(-hidden // chunk)):
                await bench.chunk(pressure=PATTERNS[pressure])


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def a_restart_forgets_the_chunks(dut: Any) -> None:
    bench = Bench(dut)
    await bench.start()
    for _ in range(3):
        await bench.restart(1, 3, 1)
        await bench.chunk()


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def a_chunk_is_asked_for_while_the_sums_are_cleared(dut: Any) -> None:
    """As by a batch in which no token chose an expert."""
    bench = Bench(dut)
    await bench.start()
    tokens = min(2, bench.arch.max_tokens)
    for delay in (0, 1, 2, 3, 9):
        await bench.restart(tokens, 1, 1)
        await bench.pulse("restart")
        await ClockCycles(dut.clk, delay)
        bench.sums[:] = 0
        await bench.chunk(lambda: 0)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def as_many_values_a_cycle_as_lanes(dut: Any) -> None:
    """A cycle for each token's range, and three for the chunk."""
    bench = Bench(dut)
    await bench.start()
    tokens, chunk = shapes(bench.arch)[-1]
    await bench.restart(tokens, chunk, chunk)
    assert await bench.chunk() == tokens * (chunk * ROWS // bench.arch.lanes + 1) + 3


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def all_float_exponents(dut: Any) -> None:
    """Words far below float32's smallest normal, around it, around the largest number and far beyond it."""
    bench = Bench(dut)
    await bench.start()
    for exponent in (-600, -230, -190, -170, -150, -130, 60, 80, 95, 120, 600):
        await bench.restart(bench.arch.max_tokens, 1, 1, exponent)
        await bench.chunk()


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def rounding_to_even(dut: Any) -> None:
    """Words at and next to the tie between two floats: of any size, up to the largest, and below the smallest."""
    bench = Bench(dut)
    await bench.start()

    def tie(sign: int, low: int) -> int:
        kept = random.choice([0xFFFFFF, 0x800000, random.randrange(0x800000, 0x1000000)])
        return sign * ((kept << low) + (1 << low - 1) + random.choice([-1, 0, 0, 1]))

    for sign, low, bound in itertools.product((-1, 1), (1, 22), (50, 128, -126)):
        await bench.restart(bench.arch.max_tokens, 1, 1, bound - 24 - low)
        await bench.chunk(lambda sign=sign, low=low: tie(sign, low))


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def float_limits(dut: Any) -> None:
    """Words of 32 bit lengths in a row, across the smallest normal and the largest number."""
    bench = Bench(dut)
    await bench.start()
    for exponent, ones in itertools.product((-140, 112), (1, 0x7FFF)):
        await bench.restart(1, 1, 1, exponent)
        words = iter([random.choice([-1, 1]) * (ones << place) for place in range(ROWS)])
        await bench.chunk(lambda words=words: next(words))


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    """While sums are cleared, and while they are sent."""
    bench = Bench(dut)
    await bench.start()
    for number in range(10):
        shape = bench.arch.max_tokens, 3, 2
        if number % 2:
            await bench.restart(*shape)
            working = cocotb.start_soon(bench.chunk(pressure=PATTERNS["sometimes"]))
        else:
            working = cocotb.start_soon(bench.restart(*shape))
        await ClockCycles(dut.clk, random.randint(1, 60))
        await interrupt(dut, working, "restart", "store", "ranges__ready", "values__ready")
        assert not int(dut.clearing.value)
        await bench.restart(bench.arch.max_tokens, 3, 2)
        await bench.chunk()
        await bench.chunk()
