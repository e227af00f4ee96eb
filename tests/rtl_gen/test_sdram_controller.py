"""The SDRAM controller at the pins of a chip that checks it: every order of segments, refresh, and what it costs."""

import contextlib
import random
from collections.abc import AsyncIterator

import cocotb
import numpy as np
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from boards import DEFAULT_BOARD, load_board
from rtl_gen.sdram_controller import SdramController
from rtl_gen.sdram_timing import BURST, SdramTiming
from rtl_gen.sdram_types import segment_layout, word_layout
from sim.bench import sdram, streams
from sim.bench.runner import run_bench
from sim.pads import SimulatedPads, pin_layout
from sim.sdram_chip import SdramChip, parameters

MEMORY = load_board(DEFAULT_BOARD).memory
TIMING = SdramTiming.of(MEMORY)
ROW_WORDS = MEMORY.row_bytes // 4
POWER_UP = TIMING.power_up * TIMING.interval


class ControllerBoard(wiring.Component):
    """The controller with its pads."""

    def __init__(self):
        super().__init__(
            {
                "segments": In(stream.Signature(segment_layout(MEMORY))),
                "writes": In(stream.Signature(word_layout(MEMORY))),
                "words": Out(BURST * MEMORY.data_bits),
                "word_valid": Out(1),
                "pads": Out(pin_layout(MEMORY)),
                "dq_i": In(MEMORY.data_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.controller = controller = SdramController(MEMORY)
        m.submodules.pads = pads = SimulatedPads(MEMORY)
        wiring.connect(m, wiring.flipped(self.segments), controller.segments)
        wiring.connect(m, wiring.flipped(self.writes), controller.writes)
        wiring.connect(m, controller.pins, pads.pins)
        m.d.comb += [
            self.words.eq(controller.words),
            self.word_valid.eq(controller.word_valid),
            self.pads.eq(pads.pads),
            pads.dq_i.eq(self.dq_i),
        ]
        return m


@contextlib.asynccontextmanager
async def board(dut) -> AsyncIterator[SdramChip]:
    """The chip holds random words; the controller may still be initialising it."""
    dut.segments__valid.value = dut.writes__valid.value = 0
    with SdramChip(parameters(MEMORY)) as chip:
        chip.memory[:] = np.random.default_rng(random.getrandbits(32)).integers(0, 1 << 16, len(chip.memory), np.uint16)
        Clock(dut.clk, sdram.SDRAM_PS, unit="ps").start()
        dut.rst.value = 1
        serving = cocotb.start_soon(sdram.serve_chip(dut, dut.clk, dut.rst, MEMORY, chip))
        await streams.reset(dut)
        try:
            yield chip
        finally:
            serving.cancel()


def segment(write: bool, length: int, **place: int) -> dict[str, int]:
    """A random one in a few rows, so that rows are hit, closed and opened in all orders."""
    where = {"row": random.choice((0, 1, 2, 8191)), "bank": random.randrange(4)} | place
    where.setdefault("column", random.randrange(ROW_WORDS - length + 1))
    return {"write": int(write), "masked": int(write and random.random() < 0.1), "length": length - 1, **where}


async def run(dut, memory: np.ndarray, segments: list[dict[str, int]], idle: streams.Pattern = streams.always) -> int:
    """Do ``segments``; ``memory`` is what the chip should hold, and becomes what it should hold then. Clocks taken."""
    writes, expected = [], []
    for item in segments:
        first = (item["row"] * MEMORY.banks + item["bank"]) * ROW_WORDS + item["column"]
        for place in range(first, first + item["length"] + 1):
            if not item["write"]:
                expected.append(int(memory[place]))
                continue
            word = {"data": random.getrandbits(32), "strobe": random.choice((15, 15, 15, 0, 1, 6))}
            writes.append(word)
            mask = 0 if item["masked"] else sum(255 << 8 * lane for lane in range(4) if word["strobe"] >> lane & 1)
            memory[place] = int(memory[place]) & ~mask | word["data"] & mask
    tasks = [
        cocotb.start_soon(streams.send(dut, "segments", segment_layout(MEMORY), segments, idle)),
        cocotb.start_soon(streams.send(dut, "writes", word_layout(MEMORY), writes, idle)),
    ]
    got, clocks = [], 0
    try:
        while len(got) < len(expected) or not all(task.done() for task in tasks):
            await ReadOnly()
            if int(dut.word_valid.value):
                got.append(int(dut.words.value))
            await RisingEdge(dut.clk)
            clocks += 1
    finally:
        for task in tasks:
            task.cancel()
    assert got == expected
    return clocks


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def segments_in_any_order(dut):
    """Short and long, reads and writes, in all orders of rows and banks, with and without pauses."""
    async with board(dut) as chip:
        memory = chip.memory.view(np.uint32)
        expected = memory.copy()
        for idle in streams.PATTERNS.values():
            for longest in (1, 3, 40):
                some = [segment(random.random() < 0.5, random.randint(1, longest)) for _ in range(80)]
                await run(dut, expected, some, idle)
        await run(dut, expected, [segment(False, 1)])
        assert np.array_equal(memory, expected)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def refresh_under_load(dut):
    """Whole rows one after the other: the rows are refreshed in time, at 16 clocks each, and nothing else is lost."""
    async with board(dut) as chip:
        expected = chip.memory.view(np.uint32).copy()
        await run(dut, expected, [segment(False, 1, row=0, bank=0)])
        for write in (False, True):
            count = 32
            rows = [segment(write, ROW_WORDS, row=1 + number // 4, bank=number % 4) for number in range(count)]
            clocks = await run(dut, expected, rows)
            data = count * ROW_WORDS * BURST
            refreshes = clocks / TIMING.interval
            assert data + 12 * refreshes < clocks < data + 16 * (refreshes + 1) + 20, (clocks, data, refreshes)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def idle_for_long(dut):
    """Refreshes go on; then rows are opened anew."""
    async with board(dut) as chip:
        expected = chip.memory.view(np.uint32).copy()
        await run(dut, expected, [segment(True, 5)])
        await ClockCycles(dut.clk, 12 * TIMING.interval)
        await run(dut, expected, [segment(False, 5)])


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def latency_and_the_cost_of_rows(dut):
    """Of a word in an open row; and what a segment costs that changes rows or direction."""
    async with board(dut) as chip:
        expected = chip.memory.view(np.uint32).copy()
        await run(dut, expected, [segment(False, 1, row=0, bank=0)])
        await ClockCycles(dut.clk, 20)
        assert await run(dut, expected, [segment(False, 1, row=0, bank=0)]) <= 16

        async def each(places, writes=(False,), count: int = 40) -> float:
            some = [segment(writes[at % len(writes)], 8, column=0, **places(at)) for at in range(count)]
            return await run(dut, expected, some) / count

        data = 8 * BURST
        refresh = 2 * 16 / 40 + 16 / 40  # two of them at most, and the latency of the last
        assert await each(lambda at: {"row": 0, "bank": 0}) <= data + refresh
        assert await each(lambda at: {"row": at, "bank": at % 4}) <= data + refresh
        # One bank: the next row's words come after tRP, tRCD and the read or write before, in whole slots.
        assert await each(lambda at: {"row": at, "bank": 0}) <= data + 10 + refresh
        assert await each(lambda at: {"row": 0, "bank": 0}, (False, True)) <= data + 2 + refresh


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def reset_in_flight(dut):
    """In the initialisation, and among segments; the chip is initialised anew."""
    async with board(dut) as chip:
        for after in (random.randrange(POWER_UP), POWER_UP + random.randrange(1500)):
            some = [segment(random.random() < 0.5, random.randint(1, 40)) for _ in range(80)]
            working = cocotb.start_soon(run(dut, chip.memory.view(np.uint32).copy(), some))
            await ClockCycles(dut.clk, after)
            await streams.interrupt(dut, working, "segments__valid", "writes__valid")
        memory = chip.memory.view(np.uint32)
        expected = memory.copy()
        await run(dut, expected, [segment(random.random() < 0.5, random.randint(1, 9)) for _ in range(40)])
        await run(dut, expected, [segment(False, 1)])
        assert np.array_equal(memory, expected)


def test_sdram_controller() -> None:
    run_bench(ControllerBoard(), __name__)
