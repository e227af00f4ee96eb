"""Weighting and combining of expert results, against the integer twin."""

from __future__ import annotations

import itertools
import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotb.utils import get_sim_time

from moe_hw.arch import ACC_BITS
from rtl_gen.combine import LATENCY, Combine
from rtl_gen.types import layer_layout, result_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, interrupt, pack, send, start, unpack_signed
from tests.rtl_gen.sums import MOST_NEGATIVE, ONE, SIZES, Batch, shapes


@pytest.mark.parametrize("sizes", list(SIZES))
def test_combine(sizes: str) -> None:
    run_bench(Combine(SIZES[sizes]), __name__, sizes=sizes)


class Bench:
    """The block, and a count of the pulses of ``job_done``."""

    def __init__(self, dut: Any):
        self.dut = dut
        self.arch = SIZES[parameter("sizes")]
        self.done = 0

    async def start(self) -> None:
        for name in ("clear", "hold", "read__enable", "results__valid"):
            getattr(self.dut, name).value = 0
        await start(self.dut)
        cocotb.start_soon(self._watch())
        await self.read(range(self.arch.combine_elements // self.arch.lanes))

    async def _watch(self) -> None:
        while True:
            await ReadOnly()
            self.done += int(self.dut.job_done.value)
            await RisingEdge(self.dut.clk)

    async def clear(self) -> None:
        self.dut.clear.value = 1
        await RisingEdge(self.dut.clk)
        self.dut.clear.value = 0
        await RisingEdge(self.dut.clk)
        assert int(self.dut.overflow.value) == 0

    async def read(self, addresses: range, token: int = 0) -> tuple[list[int], int]:
        """Sums at ``addresses``, one a cycle or slower, and the exponent of ``token`` at the last of them."""
        dut, words = self.dut, []
        for address in addresses:
            dut.read__enable.value, dut.read__address.value, dut.read__token.value = 1, address, token
            await RisingEdge(dut.clk)
            dut.read__enable.value = 0
            await ClockCycles(dut.clk, 2)
            # Sums and exponent stay until the next read, whatever the addresses are.
            while random.random() < 0.2:
                dut.read__address.value, dut.read__token.value = 0, random.randrange(self.arch.max_tokens)
                await RisingEdge(dut.clk)
            await ReadOnly()
            sums = int(dut.read__sums.value)
            words += [unpack_signed(sums >> ACC_BITS * lane, ACC_BITS) for lane in range(self.arch.lanes)]
            exponent = dut.read__exponent.value.to_signed()
            await RisingEdge(dut.clk)
        return words, exponent

    async def add(self, batch: Batch, idle: str = "always") -> None:
        self.done = 0
        self.dut.layer.value = pack(layer_layout(), batch.layer)
        await send(self.dut, "results", result_layout(self.arch), batch.results, PATTERNS[idle])
        while self.done < batch.jobs:
            await RisingEdge(self.dut.clk)

    async def check(self, batch: Batch) -> None:
        """Reads all sums; they are zero afterwards."""
        row = batch.words.shape[1]
        used = {result["of"]["token"] for result in batch.results}
        for token in range(batch.tokens):
            first = token * row // self.arch.lanes
            addresses = range(first, first + row // self.arch.lanes)
            words, exponent = await self.read(addresses, token)
            assert words == batch.words[token].tolist(), f"token {token}"
            assert token not in used or exponent == batch.token_exponents[token]
            assert not any((await self.read(addresses))[0])
        assert bool(self.dut.overflow.value) == batch.overflow

    async def run(self, batch: Batch, idle: str = "always") -> None:
        await self.clear()
        await self.add(batch, idle)
        await self.check(batch)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS))
async def batches_in_a_row(dut: Any, idle: str) -> None:
    bench = Bench(dut)
    await bench.start()
    for shape in shapes(bench.arch):
        batch = Batch(bench.arch, *shape)
        for _ in range(random.randint(1, 4)):
            batch.add_job()
        await bench.run(batch, idle)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def nothing_is_taken_while_held(dut: Any) -> None:
    bench = Bench(dut)
    await bench.start()
    batch = Batch(bench.arch, bench.arch.max_tokens, 2)
    batch.add_job()
    dut.hold.value = 1
    await ClockCycles(dut.clk, 2)
    adding = cocotb.start_soon(bench.add(batch))
    for _ in range(50):
        await RisingEdge(dut.clk)
        assert not int(dut.results__ready.value)
    dut.hold.value = 0
    await adding
    await bench.check(batch)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def saturation(dut: Any) -> None:
    """Addends beyond 48 bits, and that the status goes with the next batch."""
    bench = Bench(dut)
    await bench.start()
    for headroom in ((-60, 20), (30, 40)):
        batch = Batch(bench.arch, min(3, bench.arch.max_tokens), 1, headroom)
        for _ in range(5):
            batch.add_job()
        await bench.run(batch)
        assert batch.overflow == (headroom == (-60, 20))


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def sums_just_beyond(dut: Any) -> None:
    """Three addends of 2^45 fit a word, four are just beyond it, on either side."""
    bench = Bench(dut)
    await bench.start()
    for acc, jobs in itertools.product((MOST_NEGATIVE, -MOST_NEGATIVE - 1), (3, 4, 5)):
        batch = Batch(bench.arch, 1, 1, (2, 2))
        for _ in range(jobs):
            batch.add_job(draw_acc=lambda acc=acc: acc, draw_weight=lambda: ONE)
        await bench.run(batch)
        assert batch.overflow == (jobs > 3)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def same_address_without_pause(dut: Any) -> None:
    """One group of one token again and again: sums of an element are ``columns / lanes`` cycles apart."""
    bench = Bench(dut)
    await bench.start()
    batch = Batch(bench.arch, 1, 1)
    batch.add_job(groups=[0] * 50)
    begin = get_sim_time("ns")
    await bench.add(batch)
    cycles = round((get_sim_time("ns") - begin) / 10)
    assert cycles == 50 * bench.arch.columns // bench.arch.combine_lanes + LATENCY
    await bench.check(batch)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    bench = Bench(dut)
    await bench.start()
    for _ in range(8):
        batch = Batch(bench.arch, bench.arch.max_tokens, 1)
        batch.add_job()
        adding = cocotb.start_soon(bench.add(batch))
        await ClockCycles(dut.clk, random.randint(1, 60))
        await interrupt(dut, adding, "results__valid")
        await bench.read(range(batch.words.size // bench.arch.lanes))
        batch = Batch(bench.arch, min(3, bench.arch.max_tokens), 1)
        batch.add_job()
        await bench.run(batch, "sometimes")
