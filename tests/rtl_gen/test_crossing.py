"""A stream from clock to clock: nothing lost or doubled at any ratio of the two, and a word a cycle of the slower."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, Timer
from cocotb.utils import get_sim_time

from rtl_gen.crossing import Crossing
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, Pattern
from sim.clocks import clock_domains

BITS = 12
DOMAINS = "there", "here"


class Board(wiring.Component):
    """The block with its clocks as ports."""

    def __init__(self, depth: int):
        self.depth = depth
        ports = {f"{domain}_{name}": In(1) for domain in DOMAINS for name in ("clk", "rst")}
        super().__init__({**ports, "i": In(stream.Signature(BITS)), "o": Out(stream.Signature(BITS))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        clock_domains(m, {name: (getattr(self, f"{name}_clk"), getattr(self, f"{name}_rst")) for name in DOMAINS})
        m.submodules.crossing = crossing = Crossing(BITS, self.depth, *DOMAINS)
        connect(m, flipped(self.i), crossing.i)
        connect(m, crossing.o, flipped(self.o))
        return m


async def begin(dut: Any, there_ps: int, here_ps: int) -> None:
    cocotb.start_soon(Clock(dut.there_clk, there_ps, "ps").start())
    await Timer(random.randrange(1, 2 * here_ps), "ps")
    cocotb.start_soon(Clock(dut.here_clk, here_ps, "ps").start())
    await reset(dut)


async def reset(dut: Any) -> None:
    """Both domains, for four clocks of the slower one."""
    dut.i__valid.value = dut.o__ready.value = 0
    dut.there_rst.value = dut.here_rst.value = 1
    await ClockCycles(dut.there_clk, 4)
    await ClockCycles(dut.here_clk, 4)
    dut.there_rst.value = dut.here_rst.value = 0
    await RisingEdge(dut.here_clk)


async def send(dut: Any, words: list[int], pattern: Pattern) -> None:
    active = pattern()
    for word in words:
        while not next(active):
            await RisingEdge(dut.there_clk)
        dut.i__payload.value, dut.i__valid.value = word, 1
        taken = 0
        while not taken:
            await ReadOnly()
            taken = int(dut.i__ready.value)
            await RisingEdge(dut.there_clk)
        dut.i__valid.value = 0


async def receive(dut: Any, count: int, pattern: Pattern) -> list[int]:
    active = pattern()
    words: list[int] = []
    while len(words) < count:
        dut.o__ready.value = int(next(active))
        await ReadOnly()
        if int(dut.o__ready.value) and int(dut.o__valid.value):
            words.append(int(dut.o__payload.value))
        await RisingEdge(dut.here_clk)
    dut.o__ready.value = 0
    return words


async def pass_words(dut: Any, count: int, idle: str = "always", pressure: str = "always") -> None:
    words = [random.getrandbits(BITS) for _ in range(count)]
    sending = cocotb.start_soon(send(dut, words, PATTERNS[idle]))
    assert await receive(dut, count, PATTERNS[pressure]) == words
    await sending


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS), pressure=list(PATTERNS))
async def words_keep_their_order(dut: Any, idle: str, pressure: str) -> None:
    await begin(dut, random.randrange(4_000, 40_000, 2), random.randrange(4_000, 40_000, 2))
    await pass_words(dut, 300, idle, pressure)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(here_ps=[7_500, 12_498, 12_500, 20_002])
async def a_word_a_cycle_of_the_slower_clock(dut: Any, here_ps: int) -> None:
    """With eight places; four are what is rare."""
    there_ps = 12_500
    await begin(dut, there_ps, here_ps)
    start = get_sim_time("ps")
    await pass_words(dut, 500)
    cycles = (get_sim_time("ps") - start) / max(there_ps, here_ps)
    assert cycles < (515 if int(parameter("depth")) >= 8 else 1_000)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut, 12_500, 7_500)
    for _ in range(10):
        sending = cocotb.start_soon(send(dut, list(range(100)), PATTERNS["bursts"]))
        await ClockCycles(dut.here_clk, random.randint(1, 60))
        sending.cancel()
        await reset(dut)
        await pass_words(dut, 30)


@pytest.mark.parametrize("depth", [4, 8])
def test_crossing(depth: int) -> None:
    run_bench(Board(depth), __name__, depth=depth)
