"""The counters: each counts its own events, only while enabled, from zero after a clear."""

import random

import cocotb
from cocotb.triggers import ClockCycles, RisingEdge

from moe_hw.registers import COUNTERS
from rtl_gen.counters import Counters
from sim.bench import streams
from sim.bench.runner import run_bench


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def counts(dut):
    await streams.start(dut)
    for _ in range(2):
        dut.clear.value = 1
        await RisingEdge(dut.clk)
        dut.clear.value = 0
        expected = dict.fromkeys((word.name for word in COUNTERS), 0)
        for _ in range(100):
            dut.enable.value = enable = random.random() < 0.7
            for name in expected:
                event = random.random() < 0.5
                getattr(dut, f"{name}_event").value = event
                expected[name] += enable and event
            await RisingEdge(dut.clk)
        dut.enable.value = 0
        await ClockCycles(dut.clk, 2)
        assert {name: int(getattr(dut, name).value) for name in expected} == expected


def test_counters() -> None:
    run_bench(Counters(), __name__)
