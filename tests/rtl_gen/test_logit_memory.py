"""Logits of a batch come back token by token, row by row, in the promised cycles."""

from __future__ import annotations

import random
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
    "small": Arch(columns=4, max_tokens=1, max_experts=2, logit_words=2),
    "wide": Arch(columns=32, max_tokens=4, max_experts=64, logit_words=16),
}


@pytest.mark.parametrize("arch", list(ARCHES))
def test_logit_memory(arch: str) -> None:
    run_bench(LogitMemory(ARCHES[arch]), __name__, arch=arch)


class Batch:
    """Random logits of a few tokens, and exponents."""

    def __init__(self) -> None:
        self.arch = arch = ARCHES[parameter("arch")]
        self.rows = random.choice([2, arch.max_experts + 1, random.randint(2, arch.max_experts + 1)])
        self.groups = -(-self.rows // arch.columns)
        self.tokens = random.randint(1, arch.max_tokens)
        count = self.groups * arch.columns
        self.logits = [[random.getrandbits(ACC_BITS) - (1 << ACC_BITS - 1) for _ in range(count)]
                       for _ in range(self.tokens)]  # fmt: skip
        self.bases = [random.randint(-2048, 2047) for _ in range(self.tokens)]

    def results(self) -> list[dict[str, Any]]:
        columns = self.arch.columns
        results = [
            {
                "kind": Kind.ROUTER,
                "slot": token,
                "group": group,
                "base_exponent": self.bases[token],
                "last": 0,
                "acc": self.logits[token][group * columns : (group + 1) * columns],
            }
            for token in range(self.tokens)
            for group in range(self.groups)
        ]
        random.shuffle(results)
        results[-1]["last"] = 1
        return results

    async def store(self, dut: Any, idle: str = "always") -> None:
        dut.groups.value = self.groups
        await send(dut, "results", result_layout(self.arch), self.results(), PATTERNS[idle])
        await ClockCycles(dut.clk, 3)
        await ReadOnly()
        assert int(dut.full.value) and not int(dut.results__ready.value)
        await RisingEdge(dut.clk)

    async def scan(self, dut: Any, token: int, rows: int) -> None:
        dut.token.value = token
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
                assert dut.o_logit.value.to_signed() == self.logits[token][row]
            assert dut.base_exponent.value.to_signed() == self.bases[token]
            await RisingEdge(dut.clk)


async def begin(dut: Any) -> None:
    dut.start.value = dut.release.value = dut.results__valid.value = 0
    await start(dut)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS))
async def batches(dut: Any, idle: str) -> None:
    """Tokens are scanned in any order, more than once, all rows or fewer; then the next batch is stored."""
    await begin(dut)
    for _ in range(8):
        batch = Batch()
        await batch.store(dut, idle)
        for _ in range(4):
            await batch.scan(dut, random.randrange(batch.tokens), random.choice([batch.rows, batch.rows - 1]))
        dut.release.value = 1
        await RisingEdge(dut.clk)
        dut.release.value = 0
        await ReadOnly()
        assert not int(dut.full.value) and int(dut.results__ready.value)
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    for _ in range(6):
        batch = Batch()
        await batch.store(dut)
        dut.start.value = 1
        await ClockCycles(dut.clk, random.randint(1, 6))
        dut.start.value = 0
        await reset(dut)
        batch = Batch()
        await batch.store(dut)
        await batch.scan(dut, 0, batch.rows)
        await reset(dut)
