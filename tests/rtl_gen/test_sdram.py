"""The SDRAM as an AXI4 slave, at the pins of a chip that checks its controller: data, errors, bandwidth, resets."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from collections.abc import AsyncIterator

import cocotb
import numpy as np
import pytest
from amaranth.hdl import DomainRenamer, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ClockCycles, RisingEdge

from boards import DEFAULT_BOARD, load_board
from moe_hw.arch import Arch
from moe_hw.fit import arch_of
from rtl_gen.axi_arbiter import AxiArbiter
from rtl_gen.bus import AXI4, SLVERR
from rtl_gen.sdram import DOMAIN, Sdram
from rtl_gen.sdram_timing import BURST
from sim.bench import sdram, streams
from sim.bench.axi import Burst, Master, cycles_of
from sim.bench.runner import run_bench
from sim.pads import SimulatedPads, pin_layout
from sim.sdram_chip import SdramChip, parameters

BOARD = load_board(DEFAULT_BOARD)
ARCH = arch_of(BOARD)
MEMORY = BOARD.memory
ROW = MEMORY.row_bytes
FABRIC_PS = round(1e6 / BOARD.clock_mhz)


class SdramBoard(wiring.Component):
    """The slave with its pads, and two masters at it."""

    def __init__(self):
        super().__init__(
            {
                "master_0": In(AXI4(ARCH)),
                "master_1": In(AXI4(ARCH)),
                "pads": Out(pin_layout(MEMORY)),
                "dq_i": In(MEMORY.data_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.arbiter = arbiter = AxiArbiter(ARCH)
        m.submodules.sdram = slave = Sdram(ARCH, BOARD)
        pads = SimulatedPads(MEMORY)
        m.submodules.pads = DomainRenamer(DOMAIN)(pads)
        wiring.connect(m, wiring.flipped(self.master_0), arbiter.master_0)
        wiring.connect(m, wiring.flipped(self.master_1), arbiter.master_1)
        wiring.connect(m, arbiter.slave, slave.axi)
        wiring.connect(m, slave.pins, pads.pins)
        m.d.comb += [self.pads.eq(pads.pads), pads.dq_i.eq(self.dq_i)]
        return m


@contextlib.asynccontextmanager
async def board(dut, fabric_ps: int = FABRIC_PS) -> AsyncIterator[tuple[list[Master], SdramChip]]:
    """Two masters, and the chip, which holds random bytes."""
    with SdramChip(parameters(MEMORY)) as chip:
        chip.memory[:] = np.random.default_rng(random.getrandbits(32)).integers(0, 1 << 16, len(chip.memory), np.uint16)
        masters = [Master(dut, f"master_{number}__") for number in range(2)]
        await sdram.start(dut, fabric_ps)
        serving = cocotb.start_soon(sdram.serve_chip(dut, dut.sdram_clk, dut.sdram_rst, MEMORY, chip))
        try:
            yield masters, chip
        finally:
            serving.cancel()


def length() -> int:
    return random.choice((1, 1, 2, 3, 7, 16, 31, 64, 128, 255, 256))


def burst(size: int, address: int | None = None) -> Burst:
    """A random one; most begin in a few rows, so that rows are hit, missed and closed, and bursts cross their ends."""
    words = [random.getrandbits(32) for _ in range(size)]
    if address is None:
        row = random.choice((0, 1, 2, 3, 4, 8, 5000, MEMORY.size_bytes // ROW - 1))
        address = min(row * ROW + random.choice((0, 4, ROW // 2, ROW - 4)), MEMORY.size_bytes - 4 * size)
    return Burst(address, words, [random.choice((15, 15, 15, 0, 1, 6, 8)) for _ in words])


def apply(memory: np.ndarray, done: Burst) -> None:
    """What ``done`` writes into the bytes of ``memory``."""
    for number, (word, strobe) in enumerate(zip(done.words, done.strobes, strict=True)):
        for lane in range(4):
            if strobe >> lane & 1:
                memory[done.address + 4 * number + lane] = word >> 8 * lane & 255


def content(memory: np.ndarray, wanted: Burst) -> list[tuple[int, int]]:
    """What a read of ``wanted`` gets."""
    data = memory[wanted.address : wanted.address + 4 * len(wanted.words)].tobytes()
    return [(int.from_bytes(data[at : at + 4], "little"), 0) for at in range(0, len(data), 4)]


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(fabric_ps=[FABRIC_PS, 14900, 6100])
async def writes_and_reads(dut, fabric_ps):
    """One master writes while the other reads elsewhere; then both read what was written, and nothing else changed."""
    async with board(dut, fabric_ps) as ((one, other), chip):
        memory = chip.memory.view(np.uint8)
        expected = memory.copy()
        for idle, stall in itertools.product(streams.PATTERNS.values(), repeat=2):
            writes = [burst(length()) for _ in range(12)]
            reads = [burst(length(), 1 << 20 | random.randrange(1 << 17) * 4) for _ in range(12)]
            writing = cocotb.start_soon(one.write(writes, idle, stall))
            assert await other.read(reads, idle, stall) == [content(expected, read) for read in reads]
            assert await writing == [0] * len(writes)
            for write in writes:
                apply(expected, write)
            halves = [
                cocotb.start_soon(one.read(writes[::2], idle)),
                cocotb.start_soon(other.read(writes[1::2], stall)),
            ]
            for task, half in zip(halves, (writes[::2], writes[1::2]), strict=True):
                assert await task == [content(expected, write) for write in half]
            assert np.array_equal(memory, expected)
            one, other = other, one


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def a_read_after_an_answer_sees_the_write(dut):
    """Of the other master, too: one at a time, over each other, with single words and others."""
    async with board(dut) as (masters, chip):
        expected = chip.memory.view(np.uint8).copy()
        for number in range(60):
            write = burst(random.choice((1, 2, 3, 40)))
            assert await masters[number % 2].write([write]) == [0]
            apply(expected, write)
            assert await masters[number // 2 % 2].read([write]) == [content(expected, write)]


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def what_it_does_not_do_is_answered_with_an_error(dut):
    """Next to good bursts, which go on; the memory does not change, not even where a wrong address would wrap to."""
    async with board(dut) as ((master, _), chip):
        memory = chip.memory.view(np.uint8)
        expected = memory.copy()
        size = MEMORY.size_bytes
        wrong = [
            Burst(64, [1, 2], [15, 15], burst=0),
            Burst(64, [1, 2], [15, 15], burst=2),
            Burst(64, [1], [15], size=1),
            Burst(66, [1], [15]),
            Burst(size, [1, 2, 3], [15] * 3),
            Burst(size - 4, [1, 2], [15, 15]),
            Burst(1 << 31, [9], [15]),
        ]
        for bad in wrong:
            good, other = burst(5), burst(3, 1 << 16)
            assert await master.write([bad, good, bad]) == [SLVERR, 0, SLVERR], bad
            apply(expected, good)
            answers = await master.read([other, bad, good])
            assert [response for _, response in answers[1]] == [SLVERR] * len(bad.words), bad
            assert [answers[0], answers[2]] == [content(expected, other), content(expected, good)]
            assert np.array_equal(memory, expected), bad
        edge = Burst(size - 8, [1, 2], [15, 15])
        assert await master.write([edge]) == [0]
        assert (await master.read([edge]))[0] == [(1, 0), (2, 0)]


BANDWIDTH = {
    "sequential": (0.985, 0.985),
    "scattered": (0.975, 0.98),
    "lines": (0.935, 0.94),
    "words": (0.245, 0.245),
}
"""Of what the pins can carry, of reads and of writes; a row holds two of the accelerator's bursts of 512 bytes."""


def load(kind: str) -> list[Burst]:
    """Bursts whose rate is measured."""
    size, count, last = {
        "sequential": (ARCH.burst_bytes, 150, 0),
        "scattered": (ARCH.burst_bytes, 80, 1 << 16),
        "lines": (64, 400, 1 << 19),
        "words": (4, 300, 1 << 23),
    }[kind]
    places = [random.randrange(last) if last else number for number in range(count)]
    return [Burst(place * size, [0] * (size // 4), [15] * (size // 4)) for place in places]


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def bandwidth(dut):
    """As many bursts outstanding as the slave takes; the first third fills its queues and is not counted."""
    async with board(dut) as ((master, _), _):
        for kind, expected in BANDWIDTH.items():
            for access, least in zip((master.read, master.write), expected, strict=True):
                bursts = load(kind)
                third = len(bursts) // 3
                await access(bursts[:third])
                cycles = await cycles_of(dut, access(bursts[third:]))
                moved = sum(len(burst.words) for burst in bursts[third:]) * BURST
                ratio = moved * sdram.SDRAM_PS / (cycles * FABRIC_PS)
                dut._log.info(f"{access.__name__}, {kind}: {ratio:.4f} of the pins")
                assert abs(ratio - least) < 0.015, f"{access.__name__}, {kind}: {ratio:.4f} of the pins"


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def both_masters_get_their_share(dut):
    """Of reads of 512 bytes, each master gets half of the bandwidth, whatever the other asks for."""
    async with board(dut) as (masters, _):
        count = 40
        bursts = [Burst(number * 512, [0] * 128, [15] * 128) for number in range(count)]
        await masters[0].read([burst(1)])
        first = cocotb.start_soon(masters[0].read(bursts[: count // 2]))
        second = cocotb.start_soon(masters[1].read(bursts))
        alone = len(bursts) * 128 * BURST * sdram.SDRAM_PS / FABRIC_PS
        cycles = await cycles_of(dut, first)
        assert 0.9 < cycles / alone < 1.15
        await second


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def latency(dut):
    """Of a word in an open row, and in another row of the same bank."""
    async with board(dut) as ((master, _), _):
        await master.read([burst(1, 0)])
        for address, most in ((4, 23), (4 * ROW, 26)):
            await ClockCycles(dut.clk, 50)
            cycles = await cycles_of(dut, master.read([burst(1, address)]))
            dut._log.info(f"latency {cycles}")
            assert cycles <= most


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def reset_in_flight(dut):
    """Among bursts, refreshes and the initialisation; the chip is initialised anew, and memory and slave agree."""
    async with board(dut) as (masters, chip):
        for after in (random.randrange(17000), 17000 + random.randrange(3000), 17000 + random.randrange(3000)):
            work = []
            for master in masters:
                work.append(cocotb.start_soon(master.write([burst(length()) for _ in range(20)])))
                work.append(cocotb.start_soon(master.read([burst(length()) for _ in range(20)])))
            await ClockCycles(dut.clk, after)
            dut.rst.value = dut.sdram_rst.value = 1
            for task in work:
                task.cancel()
            await RisingEdge(dut.clk)
            for master in masters:
                master.idle()
            await sdram.reset(dut)
        expected = chip.memory.view(np.uint8).copy()
        writes = [burst(length()) for _ in range(3)]
        assert await masters[0].write(writes) == [0, 0, 0]
        for write in writes:
            apply(expected, write)
        assert await masters[1].read(writes) == [content(expected, write) for write in writes]


def test_sdram() -> None:
    run_bench(SdramBoard(), __name__)


def test_a_bus_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="data_bits: expected 32, two transfers of the memory, got 64"):
        Sdram(Arch(columns=8, data_bits=64), BOARD)


def test_a_fabric_that_is_slower_than_the_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clock_mhz: expected at least 66.5, half of the memory's, got 60"):
        Sdram(ARCH, dataclasses.replace(BOARD, clock_mhz=60.0))
