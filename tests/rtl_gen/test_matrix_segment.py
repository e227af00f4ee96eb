"""Segments of random layers, chunk by chunk, against the memory image's rules in Python."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.matrix_segment import MatrixSegment
from rtl_gen.types import Kind, layer_layout, segment_layout, table_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import pack, start, unpack
from tests.rtl_gen.batches import ROUTER, random_layer, segment_of, table_entry
from tests.rtl_gen.neighbours import pulse

ARCHES = {
    "narrow": Arch(columns=4, max_experts=2, max_top_k=1),
    "wide": Arch(columns=128, max_experts=512, max_top_k=16),
}


@pytest.mark.parametrize("arch", list(ARCHES))
def test_matrix_segment(arch: str) -> None:
    run_bench(MatrixSegment(ARCHES[arch]), __name__, arch=arch)


async def check(dut: Any, arch: Arch, layer: dict[str, int], kind: Kind, chunk: int, expert: int) -> None:
    """Of routed expert ``expert``, of the shared one behind them, or of the router."""
    dut.kind.value, dut.shared.value = kind.value, int(expert == layer["experts"])
    dut.expert.value = pack(table_layout(), table_entry(layer, expert))
    await ClockCycles(dut.clk, 2)
    await ReadOnly()
    got = unpack(segment_layout(arch), int(dut.segment.value))
    assert got == segment_of(arch, layer, kind, chunk, expert), f"{kind} {chunk} of {expert}: {layer}"
    await RisingEdge(dut.clk)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def every_matrix_of_random_layers(dut: Any) -> None:
    """Also when a batch ends before its last chunk, which is what a reset leaves."""
    arch = ARCHES[parameter("arch")]
    dut.restart.value = dut.advance.value = 0
    await start(dut)
    for _ in range(60):
        layer = random_layer(arch)
        dut.layer.value = pack(layer_layout(), layer)
        await pulse(dut, "restart")
        await RisingEdge(dut.clk)
        shared = [layer["experts"]] if layer["shared_blocks"] else []
        experts = [random.randrange(layer["experts"]), *shared]
        await check(dut, arch, layer, Kind.ROUTER, 0, ROUTER)
        for expert in experts:
            await check(dut, arch, layer, Kind.UP, 0, expert)
        chunks = -(-layer["hidden_blocks"] // layer["chunk_blocks"])
        for chunk in range(random.choice([chunks, random.randint(1, chunks)])):
            for expert in experts:
                await check(dut, arch, layer, Kind.DOWN, chunk, expert)
            assert int(dut.last_chunk.value) == (chunk == chunks - 1)
            await pulse(dut, "advance")
            await ClockCycles(dut.clk, 1)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def an_entry_without_a_width_counts_as_two_bits(dut: Any) -> None:
    """So a table that is none ends in wrong results, not in a wait for planes that never come."""
    dut.restart.value = dut.advance.value = 0
    await start(dut)
    dut.kind.value, dut.shared.value = Kind.UP.value, 0
    for bits in (0, 1):
        dut.expert.value = pack(table_layout(), {"address": 5, "bits": bits})
        await ReadOnly()
        assert unpack(segment_layout(ARCHES[parameter("arch")]), int(dut.segment.value))["bits"] == 2
        await RisingEdge(dut.clk)
