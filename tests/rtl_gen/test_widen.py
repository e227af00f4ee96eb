"""Words collected to the writer's width, and filled up with zeros."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotb.utils import get_sim_time

from moe_hw.arch import Arch
from rtl_gen.widen import Widen
from sim.bench import streams
from sim.bench.runner import parameter, run_bench


def sizes(lanes: int) -> Arch:
    return Arch(columns=16, data_bits=32 * lanes, lanes=lanes)


async def begin(dut) -> int:
    for name in ("words__valid", "values__ready", "pad", "clear"):
        getattr(dut, name).value = 0
    await streams.start(dut)
    return int(parameter("lanes"))


async def pulse(dut, name: str) -> None:
    getattr(dut, name).value = 1
    await RisingEdge(dut.clk)
    getattr(dut, name).value = 0


def widened(words: list[int], lanes: int) -> list[int]:
    words = words + [0] * (-len(words) % lanes)
    return [
        sum(word << 32 * lane for lane, word in enumerate(words[at : at + lanes]))
        for at in range(0, len(words), lanes)
    ]


async def run(dut, lanes: int, count: int, idle=streams.always, pressure=streams.always) -> None:
    """Send ``count`` words, then zeros until all of them have left."""
    words = [random.getrandbits(32) for _ in range(count)]
    values = widened(words, lanes)
    receiving = cocotb.start_soon(streams.receive(dut, "values", 32 * lanes, len(values), pressure))
    await streams.send(dut, "words", 32, words, idle)
    dut.pad.value = 1
    assert await receiving == values
    dut.pad.value = 0
    await pulse(dut, "clear")


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), pressure=list(streams.PATTERNS))
async def sequences_in_a_row(dut, idle, pressure):
    lanes = await begin(dut)
    for count in (1, 2, 3, 4, 7, 64, 101):
        await run(dut, lanes, count, streams.PATTERNS[idle], streams.PATTERNS[pressure])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_word_a_cycle(dut):
    """The last value comes one cycle after its last word."""
    lanes = await begin(dut)
    words = [random.getrandbits(32) for _ in range(20 * lanes)]
    cocotb.start_soon(streams.send(dut, "words", 32, words))
    before = get_sim_time("ns")
    assert await streams.receive(dut, "values", 32 * lanes, 20) == widened(words, lanes)
    assert round((get_sim_time("ns") - before) / 10) == len(words) + 1


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def clear_forgets_what_was_collected(dut):
    """A part of a value, and a value that was not taken; no zeros come without ``pad``."""
    lanes = await begin(dut)
    for count in range(1, lanes + 1):
        await streams.send(dut, "words", 32, [random.getrandbits(32) for _ in range(count)])
        await pulse(dut, "clear")
        await ClockCycles(dut.clk, 4)
        await ReadOnly()
        assert not int(dut.values__valid.value)
        await RisingEdge(dut.clk)
        await run(dut, lanes, 3)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut):
    lanes = await begin(dut)
    for _ in range(10):
        working = cocotb.start_soon(run(dut, lanes, 50, streams.always, streams.PATTERNS["sometimes"]))
        await ClockCycles(dut.clk, random.randint(1, 40))
        await streams.interrupt(dut, working, "words__valid", "values__ready", "pad", "clear")
        assert not int(dut.values__valid.value)
        await run(dut, lanes, 5)


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_widen(lanes: int) -> None:
    run_bench(Widen(sizes(lanes)), __name__, lanes=lanes)
