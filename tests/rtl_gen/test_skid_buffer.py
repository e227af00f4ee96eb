"""The skid buffer: every payload once, in order, one a cycle, and outputs that wait for nothing."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, FallingEdge, ReadOnly, RisingEdge

from rtl_gen.skid_buffer import SkidBuffer
from sim.bench import streams
from sim.bench.runner import parameter, run_bench


async def begin(dut) -> int:
    dut.i__valid.value = dut.o__ready.value = 0
    await streams.start(dut)
    return int(parameter("width"))


async def carry(dut, width: int, count: int, idle: streams.Pattern, stall: streams.Pattern) -> None:
    payloads = [random.getrandbits(width) for _ in range(count)]
    sending = cocotb.start_soon(streams.send(dut, "i", width, payloads, idle))
    try:
        assert await streams.receive(dut, "o", width, count, stall) == payloads
    finally:
        sending.cancel()


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def nothing_is_lost(dut, idle, stall):
    await carry(dut, await begin(dut), 100, streams.PATTERNS[idle], streams.PATTERNS[stall])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def one_a_cycle(dut):
    width = await begin(dut)
    dut.i__valid.value = dut.o__ready.value = 1
    for payload in (random.getrandbits(width) for _ in range(20)):
        dut.i__payload.value = payload
        await RisingEdge(dut.clk)
        await FallingEdge(dut.clk)
        assert int(dut.o__valid.value) == 1
        assert int(dut.o__payload.value) == payload


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def two_places(dut):
    """With nobody who takes them, two payloads find room."""
    await begin(dut)
    dut.i__valid.value = 1
    taken = 0
    for _ in range(5):
        await ReadOnly()
        taken += int(dut.i__ready.value)
        await RisingEdge(dut.clk)
    assert taken == 2


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut):
    width = await begin(dut)
    for _ in range(8):
        working = cocotb.start_soon(carry(dut, width, 100, streams.always, streams.PATTERNS["sometimes"]))
        await ClockCycles(dut.clk, random.randint(1, 60))
        await streams.interrupt(dut, working, "i__valid", "o__ready")
        assert int(dut.o__valid.value) == 0
        await carry(dut, width, 10, streams.always, streams.always)


@pytest.mark.parametrize("width", [1, 35])
def test_skid_buffer(width: int) -> None:
    run_bench(SkidBuffer(width), __name__, width=width)
