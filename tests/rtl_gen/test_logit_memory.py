"""Logits of a batch's jobs come back slot by slot, row by row, in the promised cycles."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ACC_BITS, Arch
from rtl_gen.logit_memory import SCAN_LATENCY, LogitMemory
from rtl_gen.types import Kind, result_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, reset, send, start

ARCHES = {
    "one_slot": Arch(columns=4, max_tokens=2, slots=1, max_experts=2, logit_words=2),
    "wide": Arch(columns=32, max_tokens=16, slots=4, max_experts=64, logit_words=16),
}


@pytest.mark.parametrize("arch", list(ARCHES))
def test_logit_memory(arch: str) -> None:
    run_bench(LogitMemory(ARCHES[arch]), __name__, arch=arch)


class Job:
    """Random logits of a few tokens, and exponents."""

    def __init__(self, tokens: int, first: int = 0, count: int | None = None):
        self.arch = arch = ARCHES[parameter("arch")]
        self.tokens, self.first = tokens, first
        self.slots = random.randint(1, arch.slots) if count is None else count
        self.rows = random.choice([2, arch.max_experts + 1, random.randint(2, arch.max_experts + 1)])
        self.groups = -(-self.rows // arch.columns)
        count = self.groups * arch.columns
        self.logits = [[random.getrandbits(ACC_BITS) - (1 << ACC_BITS - 1) for _ in range(count)]
                       for _ in range(self.slots)]  # fmt: skip
        self.bases = [random.randint(-2048, 2047) for _ in range(self.slots)]

    def results(self) -> list[dict[str, Any]]:
        """In any order, but for the last slot's last one."""
        columns = self.arch.columns
        results = [
            {
                "kind": Kind.ROUTER,
                "slot": slot,
                "group": group,
                "of": {"token": self.first + slot},
                "base_exponent": self.bases[slot],
                "last": int(slot == self.slots - 1 and group == self.groups - 1),
                "acc": self.logits[slot][group * columns : (group + 1) * columns],
            }
            for slot in range(self.slots)
            for group in range(self.groups)
        ]
        first = results[:-1]
        random.shuffle(first)
        return first + results[-1:]

    async def store(self, dut: Any, idle: str = "always") -> None:
        dut.groups.value, dut.tokens.value = self.groups, self.tokens
        await send(dut, "results", result_layout(self.arch), self.results(), PATTERNS[idle])
        await ClockCycles(dut.clk, 3)
        await ReadOnly()
        assert int(dut.full.value) and not int(dut.results__ready.value)
        assert int(dut.first_token.value) == self.first and int(dut.last_slot.value) == self.slots - 1
        assert int(dut.last_job.value) == (self.first + self.slots == self.tokens)
        await RisingEdge(dut.clk)

    async def scan(self, dut: Any, slot: int, rows: int) -> None:
        dut.slot.value = slot
        await RisingEdge(dut.clk)
        dut.start.value, dut.rows.value = 1, rows
        await RisingEdge(dut.clk)
        dut.start.value = 0
        for cycle in range(1, SCAN_LATENCY + rows + 2):
            await ReadOnly()
            row = cycle - SCAN_LATENCY
            assert int(dut.o_valid.value) == (0 <= row < rows), f"cycle {cycle}"
            if 0 <= row < rows:
                assert int(dut.o_row.value) == row and int(dut.o_last.value) == (row == rows - 1)
                assert dut.o_logit.value.to_signed() == self.logits[slot][row]
            assert dut.base_exponent.value.to_signed() == self.bases[slot]
            await RisingEdge(dut.clk)


async def begin(dut: Any) -> None:
    dut.start.value = dut.release.value = dut.results__valid.value = 0
    await start(dut)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS))
async def jobs_of_batches(dut: Any, idle: str) -> None:
    """Slots are scanned in any order, more than once, all rows or fewer; then the next job is stored."""
    await begin(dut)
    arch = ARCHES[parameter("arch")]
    for tokens in (1, arch.max_tokens, random.randint(1, arch.max_tokens)):
        for job in jobs_of(tokens):
            await job.store(dut, idle)
            for _ in range(3):
                await job.scan(dut, random.randrange(job.slots), random.choice([job.rows, job.rows - 1]))
            dut.release.value = 1
            await RisingEdge(dut.clk)
            dut.release.value = 0
            await ReadOnly()
            assert not int(dut.full.value) and int(dut.results__ready.value)
            await RisingEdge(dut.clk)


def jobs_of(tokens: int) -> Iterator[Job]:
    first = 0
    while first < tokens:
        job = Job(tokens, first, random.randint(1, min(tokens - first, ARCHES[parameter("arch")].slots)))
        yield job
        first += job.slots


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    tokens = ARCHES[parameter("arch")].max_tokens
    for _ in range(6):
        job = Job(tokens)
        await job.store(dut)
        dut.start.value = 1
        await ClockCycles(dut.clk, random.randint(1, 6))
        dut.start.value = 0
        await reset(dut)
        job = Job(tokens)
        await job.store(dut)
        await job.scan(dut, 0, job.rows)
        await reset(dut)
