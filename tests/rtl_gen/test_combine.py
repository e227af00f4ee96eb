"""Weighting, combining and float output of expert results, against the integer twin."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import cocotb
import numpy as np
import pytest
from amaranth.hdl import unsigned
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotb.utils import get_sim_time

from moe_hw.arch import ACC_BITS, ROWS, Arch
from moe_hw.twins.combine import add, contribution, to_float32
from rtl_gen.combine import LATENCY, Combine
from rtl_gen.types import Kind, layer_layout, result_layout, slot_bits, slot_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, pack, receive, reset, send, start

MOST_NEGATIVE = -(1 << ACC_BITS - 1)
ONE = {"mantissa": 1 << 15, "exponent": -15}


@pytest.mark.parametrize(("columns", "tokens"), [(4, 1), (32, 16)])
def test_combine(columns: int, tokens: int) -> None:
    run_bench(bench_combine(columns, tokens), __name__, columns=columns, tokens=tokens)


def bench_combine(columns: int, tokens: int) -> Combine:
    return Combine(Arch(columns=columns, max_tokens=tokens, combine_elements=1024))


def random_weight() -> dict[str, int]:
    if random.random() < 0.1:
        return {"mantissa": 0, "exponent": random.choice([-2048, -15])}
    mantissa = random.choice([1 << 15, (1 << 16) - 1, random.randrange(1 << 15, 1 << 16)])
    return {"mantissa": mantissa, "exponent": random.choice([-15, -16, -20, -60])}


def random_acc() -> int:
    return random.choice(
        [
            0,
            MOST_NEGATIVE,
            -MOST_NEGATIVE - 1,
            random.choice([-1, 1]) << random.randrange(ACC_BITS - 1),
            random.randint(MOST_NEGATIVE, -MOST_NEGATIVE - 1) >> random.randrange(ACC_BITS),
            random.randint(MOST_NEGATIVE, -MOST_NEGATIVE - 1) >> random.randrange(8),
        ]
    )


class Batch:
    """A batch of jobs: the results to send, the slot table of each job, and the words they make.

    Parameters:
        tokens, hidden_blocks: sizes.
        combine_exponent: of the layer.
        headroom: range of ``K - A_down``; the addends of the largest accumulators saturate below about -15.
    """

    def __init__(self, arch: Arch, tokens: int, hidden_blocks: int, combine_exponent: int, headroom: tuple[int, int]):
        self.arch = arch
        self.tokens = tokens
        self.headroom = headroom
        self.layer = {
            "tokens": tokens,
            "hidden_blocks": hidden_blocks,
            "combine_exponent": combine_exponent,
            "down_exponent": random.randint(-100, 100),
            "shared_down_exponent": random.randint(-100, 100),
        }
        self.token_exponents = [random.randint(-30, 30) for _ in range(tokens)]
        self.words = np.zeros((tokens, hidden_blocks * ROWS), np.int64)
        self.overflow = False
        self.jobs: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []

    def add_job(
        self,
        tokens: list[int] | None = None,
        groups: list[int] | None = None,
        draw_acc: Callable[[], int] = random_acc,
        draw_weight: Callable[[], dict[str, int]] = random_weight,
    ) -> None:
        """A job for ``tokens`` in the order of their slots, by default for all tokens and groups."""
        tokens = list(range(self.tokens)) if tokens is None else tokens
        groups = list(range(self.words.shape[1] // self.arch.columns)) if groups is None else groups
        slots = [{"token": token, "weight": draw_weight()} for token in tokens]
        shared = random.randrange(2)
        results = []
        for group in groups:
            for slot, token in enumerate(tokens):
                acc = [draw_acc() for _ in range(self.arch.columns)]
                results.append(self._result(shared, slot, token, group, acc, slots[slot]["weight"]))
        results[-1]["last"] = 1
        self.jobs.append((slots, results))

    def _result(
        self, shared: int, slot: int, token: int, group: int, acc: list[int], weight: dict[str, int]
    ) -> dict[str, Any]:
        k = 2 * self.token_exponents[token] + self.layer["combine_exponent"]
        a_down = k - random.randint(*self.headroom)
        addends, beyond = contribution(acc, a_down, weight["mantissa"], weight["exponent"], k)
        place = np.s_[token, group * self.arch.columns : (group + 1) * self.arch.columns]
        self.words[place], saturated = add(self.words[place], addends)
        self.overflow |= bool((beyond | saturated).any())
        return {
            "kind": Kind.DOWN,
            "shared": shared,
            "parity": len(self.jobs) & 1,
            "last": 0,
            "slot": slot,
            "token": token,
            "group": group,
            "base_exponent": a_down - self.layer["shared_down_exponent" if shared else "down_exponent"],
            "token_exponent": self.token_exponents[token],
            "acc": acc,
        }

    @property
    def output(self) -> list[int]:
        """Bits of the float32 output."""
        exponents = 2 * np.array(self.token_exponents)[:, None] + self.layer["combine_exponent"]
        return to_float32(self.words, exponents).view(np.uint32).ravel().tolist()


def tie_pieces(sign: int, low: int) -> list[Callable[[], int]]:
    """Addends that make 24 bits above bit ``low``, a half of that bit, and one unit more, less or none."""
    return [
        lambda: sign * random.choice([0xFFFF, 0x8000, random.randrange(0x8000, 0x10000)]) << 8 + low,
        lambda: sign * random.choice([0xFF, 0xFE, random.randrange(0x100)]) << low,
        lambda: sign << low - 1,
        lambda: random.choice([-1, 0, 0, 1]),
    ]


def bench_arch() -> Arch:
    return bench_combine(int(parameter("columns")), int(parameter("tokens"))).arch


def shapes(arch: Arch) -> list[tuple[int, int]]:
    """(tokens, hidden_blocks), the largest fills the memory."""
    largest = arch.combine_elements // ROWS // arch.max_tokens
    return [(1, 1), (min(3, arch.max_tokens), 2), (arch.max_tokens, largest)]


class Bench:
    """The block with a slot table, and a count of the pulses of ``job_done``."""

    def __init__(self, dut: Any):
        self.dut = dut
        self.arch = bench_arch()
        self.table = [self._slots([]), self._slots([])]
        self.done = 0

    async def start(self) -> None:
        for name in ("clear", "read", "results__valid", "output__ready"):
            getattr(self.dut, name).value = 0
        await start(self.dut)
        cocotb.start_soon(self._serve())

    def _slots(self, slots: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A half of the slot table, with garbage after ``slots``."""
        return slots + [{"token": 1, "weight": random_weight()}] * ((1 << slot_bits(self.arch)) - len(slots))

    async def _serve(self) -> None:
        while True:
            await ReadOnly()
            slot = self.table[int(self.dut.slot__parity.value)][int(self.dut.slot__index.value)]
            self.done += int(self.dut.job_done.value)
            await RisingEdge(self.dut.clk)
            self.dut.slot__data.value = pack(slot_layout(self.arch), slot)

    async def pulse(self, signal: Any) -> None:
        signal.value = 1
        await RisingEdge(self.dut.clk)
        signal.value = 0

    async def clear(self, batch: Batch) -> None:
        self.dut.layer.value = pack(layer_layout(), batch.layer)
        await self.pulse(self.dut.clear)
        for cycle in range(batch.words.size + 1):
            await ReadOnly()
            clearing = int(self.dut.clearing.value)
            assert clearing == (cycle < batch.words.size)
            await RisingEdge(self.dut.clk)
        assert int(self.dut.overflow.value) == 0

    async def add(self, batch: Batch, idle: str) -> None:
        """Sends all jobs; a parity of the slot table is written again when its job is done."""
        self.done = 0
        for number, (slots, results) in enumerate(batch.jobs):
            while self.done < number - 1:
                await RisingEdge(self.dut.clk)
            self.table[number & 1] = self._slots(slots)
            await send(self.dut, "results", result_layout(self.arch), results, PATTERNS[idle])
        while self.done < len(batch.jobs):
            await RisingEdge(self.dut.clk)

    async def check_output(self, batch: Batch, pressure: str) -> None:
        await self.pulse(self.dut.read)
        out = await receive(self.dut, "output", unsigned(32), batch.words.size, PATTERNS[pressure])
        for number, (got, want) in enumerate(zip(out, batch.output, strict=True)):
            assert got == want, f"output {number}: {got:#010x}, expected {want:#010x}"
        assert bool(self.dut.overflow.value) == batch.overflow

    async def run(self, batch: Batch, idle: str = "always", pressure: str = "always") -> None:
        await self.clear(batch)
        await self.add(batch, idle)
        await self.check_output(batch, pressure)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS), pressure=list(PATTERNS))
async def batches_in_a_row(dut: Any, idle: str, pressure: str) -> None:
    bench = Bench(dut)
    await bench.start()
    for tokens, hidden_blocks in random.sample(shapes(bench.arch), 2):
        batch = Batch(bench.arch, tokens, hidden_blocks, random.randint(-80, 40), (5, 60))
        batch.add_job()
        for _ in range(random.randint(0, 3)):
            batch.add_job(random.sample(range(tokens), random.randint(1, tokens)))
        await bench.run(batch, idle, pressure)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def results_wait_until_all_is_clear(dut: Any) -> None:
    """Results that are there from the first cycle of clearing are added to zeroes."""
    bench = Bench(dut)
    await bench.start()
    for _ in range(2):
        batch = Batch(bench.arch, bench.arch.max_tokens, 2, 0, (5, 60))
        batch.add_job()
        dut.layer.value = pack(layer_layout(), batch.layer)
        await bench.pulse(dut.clear)
        await bench.add(batch, "always")
        await bench.check_output(batch, "always")


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def saturation(dut: Any) -> None:
    """Addends beyond 48 bits, and that the status goes with the next batch."""
    bench = Bench(dut)
    await bench.start()
    for headroom in ((-60, 20), (30, 40)):
        batch = Batch(bench.arch, min(3, bench.arch.max_tokens), 1, 0, headroom)
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
        batch = Batch(bench.arch, 1, 1, 0, (2, 2))
        for _ in range(jobs):
            batch.add_job(draw_acc=lambda acc=acc: acc, draw_weight=lambda: ONE)
        await bench.run(batch)
        assert batch.overflow == (jobs > 3)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def all_float_exponents(dut: Any) -> None:
    """Words far below float32's smallest normal, around it, around the largest number and far beyond it."""
    bench = Bench(dut)
    await bench.start()
    for combine_exponent in (-600, -230, -190, -170, -150, -130, 60, 80, 95, 120, 600):
        batch = Batch(bench.arch, bench.arch.max_tokens, 1, combine_exponent, (2, 60))
        batch.add_job()
        await bench.run(batch)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def rounding_to_even(dut: Any) -> None:
    """Words at and next to the tie between two floats: of any size, up to the largest, and below the smallest."""
    bench = Bench(dut)
    await bench.start()
    for sign, low, bound in itertools.product((-1, 1), (1, 22), (50, 128, -126)):
        batch = Batch(bench.arch, bench.arch.max_tokens, 1, bound - 24 - low, (0, 0))
        batch.token_exponents = [0] * batch.tokens
        for piece in tie_pieces(sign, low):
            batch.add_job(draw_acc=piece, draw_weight=lambda: ONE)
        await bench.run(batch)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def float_limits(dut: Any) -> None:
    """Words of 32 bit lengths in a row, across the smallest normal and the largest number."""
    bench = Bench(dut)
    await bench.start()
    for exponent, ones in itertools.product((-140, 112), (1, 0x7FFF)):
        batch = Batch(bench.arch, 1, 1, exponent, (0, 0))
        batch.token_exponents = [0]
        words = iter([random.choice([-1, 1]) * (ones << place) for place in range(ROWS)])
        batch.add_job(draw_acc=lambda words=words: next(words), draw_weight=lambda: ONE)
        await bench.run(batch)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def same_address_without_pause(dut: Any) -> None:
    """One group of one token again and again: sums of an element are ``columns`` cycles apart."""
    bench = Bench(dut)
    await bench.start()
    batch = Batch(bench.arch, 1, 1, 0, (5, 60))
    batch.add_job(groups=[0] * 50)
    await bench.clear(batch)
    begin = get_sim_time("ns")
    await bench.add(batch, "always")
    assert round((get_sim_time("ns") - begin) / 10) == 50 * bench.arch.columns + LATENCY
    await bench.check_output(batch, "always")


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    bench = Bench(dut)
    await bench.start()
    for phase in range(6):
        batch = Batch(bench.arch, bench.arch.max_tokens, 2, 0, (5, 60))
        batch.add_job()
        if phase % 3 == 0:
            dut.layer.value = pack(layer_layout(), batch.layer)
            await bench.pulse(dut.clear)
            await ClockCycles(dut.clk, random.randint(1, 20))
        else:
            await bench.clear(batch)
            adding = cocotb.start_soon(bench.add(batch, "always"))
            await ClockCycles(dut.clk, random.randint(1, 40))
            adding.cancel()
            dut.results__valid.value = 0
            if phase % 3 == 1:
                await bench.pulse(dut.read)
                await ClockCycles(dut.clk, random.randint(1, 20))
        await reset(dut)
        await bench.run(batch, "always", "sometimes")
