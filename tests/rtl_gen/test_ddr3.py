"""The DDR3 as an AXI4 slave, with a chip behind DFI that checks LiteDRAM's controller: data, errors, bandwidth."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from collections.abc import AsyncIterator

import cocotb
import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from boards import load_board
from moe_hw.ddr3 import REGISTERS, REGISTERS_ADDR_BITS, REGISTERS_BASE
from moe_hw.fit import arch_of
from rtl_gen.axi_arbiter import AxiArbiter
from rtl_gen.bus import AXI4, SLVERR, AXI4Lite
from rtl_gen.ddr3 import Ddr3
from rtl_gen.litedram_core import controller_verilog
from sim.bench import ddr3, streams
from sim.bench.axi import Burst, Master, cycles_of
from sim.bench.runner import run_bench

BOARD = load_board("ecpix5-85f")
ARCH = arch_of(BOARD)
MEMORY = BOARD.memory
ROW, WORD = MEMORY.row_bytes, MEMORY.burst_bytes
EVERY_BYTE = (1 << WORD) - 1
FABRIC_PS = round(1e6 / BOARD.clock_mhz)


class Ddr3Board(wiring.Component):
    """The slave up to DFI, and two masters at it."""

    def __init__(self):
        super().__init__(
            {
                "master_0": In(AXI4(ARCH)),
                "master_1": In(AXI4(ARCH)),
                "registers": In(AXI4Lite(REGISTERS_ADDR_BITS)),
                "dfi": Out(ddr3.dfi_layout(MEMORY)),
                "rddata": In(8 * WORD),
                "rddata_valid": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.arbiter = arbiter = AxiArbiter(ARCH)
        m.submodules.slave = slave = Ddr3(ARCH, BOARD)
        connect(m, flipped(self.master_0), arbiter.master_0)
        connect(m, flipped(self.master_1), arbiter.master_1)
        connect(m, arbiter.slave, slave.axi)
        connect(m, flipped(self.registers), slave.registers)
        pins = slave.pins.dfi
        m.d.comb += [getattr(self.dfi, name).eq(getattr(pins, name)) for name, _ in ddr3.dfi_layout(MEMORY)]
        for phase, part in enumerate((self.rddata[: 4 * WORD], self.rddata[4 * WORD :])):
            m.d.comb += getattr(pins, f"p{phase}_rddata").eq(part)
            m.d.comb += getattr(pins, f"p{phase}_rddata_valid").eq(self.rddata_valid)
        return m


@contextlib.asynccontextmanager
async def board(dut, fabric_ps: int = FABRIC_PS) -> AsyncIterator[tuple[list[Master], np.ndarray]]:
    """Two masters, and the chip's bytes: random ones, in the controller's hands."""
    chip = ddr3.DfiMemory(MEMORY)
    chip.bytes[: 1 << 22] = np.random.default_rng(random.getrandbits(32)).integers(0, 256, 1 << 22, np.uint8)
    masters = [Master(dut, f"master_{number}__") for number in range(2)]
    registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "registers_"), dut.clk, dut.rst)
    await ddr3.start(dut, fabric_ps)
    serving = cocotb.start_soon(chip.serve(dut))
    await registers.write_dword(REGISTERS["dfii_control"] - REGISTERS_BASE, 1)
    try:
        yield masters, chip.bytes
    finally:
        serving.cancel()
        chip.chip.close()


def length() -> int:
    return random.choice((1, 1, 2, 3, 7, 16, 31, 128))


def burst(size: int, address: int | None = None) -> Burst:
    """A random one; most begin in a few rows, so that rows are hit, missed and closed, and bursts cross their ends."""
    words = [random.getrandbits(8 * WORD) for _ in range(size)]
    if address is None:
        row = random.choice((0, 1, 2, 8, 9, 64, 1000))
        address = row * ROW + random.choice((0, WORD, ROW // 2, ROW - WORD))
    strobes = [random.choice((EVERY_BYTE, EVERY_BYTE, 0, random.getrandbits(WORD))) for _ in words]
    return Burst(address, words, strobes, size=4)


def apply(memory: np.ndarray, done: Burst) -> None:
    """What ``done`` writes into the bytes of ``memory``."""
    for number, (word, strobe) in enumerate(zip(done.words, done.strobes, strict=True)):
        for lane in range(WORD):
            if strobe >> lane & 1:
                memory[done.address + WORD * number + lane] = word >> 8 * lane & 255


def content(memory: np.ndarray, wanted: Burst) -> list[tuple[int, int]]:
    """What a read of ``wanted`` gets."""
    data = memory[wanted.address : wanted.address + WORD * len(wanted.words)].tobytes()
    return [(int.from_bytes(data[at : at + WORD], "little"), 0) for at in range(0, len(data), WORD)]


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(fabric_ps=[FABRIC_PS, 19_800, 7_100])
async def writes_and_reads(dut, fabric_ps):
    """One master writes while the other reads elsewhere; then both read what was written, and nothing else changed."""
    async with board(dut, fabric_ps) as ((one, other), memory):
        expected = memory[: 1 << 22].copy()
        for idle, stall in itertools.product(streams.PATTERNS.values(), repeat=2):
            writes = [burst(length()) for _ in range(6)]
            reads = [burst(length(), 1 << 21 | random.randrange(1 << 16) * WORD) for _ in range(6)]
            writing = cocotb.start_soon(one.write(writes, idle, stall))
            assert await other.read(reads, idle, stall) == [content(expected, read) for read in reads]
            assert await writing == [0] * len(writes)
            for write in writes:
                apply(expected, write)
            halves = [
                cocotb.start_soon(one.read(writes[::2], idle)),
                cocotb.start_soon(other.read(writes[1::2], idle)),
            ]
            for half, wanted in zip(halves, (writes[::2], writes[1::2]), strict=True):
                assert await half == [content(expected, read) for read in wanted]
        assert np.array_equal(memory[: 1 << 22], expected)


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def a_read_sees_every_write_that_was_answered(dut):
    async with board(dut) as (masters, memory):
        expected = memory[: 1 << 22].copy()
        for number in range(40):
            write = burst(random.choice((1, 2, 3, 40)))
            assert await masters[number % 2].write([write]) == [0]
            apply(expected, write)
            assert await masters[number // 2 % 2].read([write]) == [content(expected, write)]


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def what_it_does_not_do_is_answered_with_an_error(dut):
    """Next to good bursts, which go on; the memory does not change."""
    async with board(dut) as ((master, _), memory):
        size = MEMORY.size_bytes
        before = memory[-ROW:].copy(), memory[:ROW].copy()
        for bad in (
            Burst(64, [1, 2], [EVERY_BYTE] * 2, size=4, burst=0),
            Burst(64, [1], [EVERY_BYTE], size=3),
            Burst(72, [1], [EVERY_BYTE], size=4),
            Burst(size, [1], [EVERY_BYTE], size=4),
            Burst(size - WORD, [1, 2], [EVERY_BYTE] * 2, size=4),
        ):
            good = burst(3, 1 << 20)
            assert await master.write([bad, good, bad]) == [SLVERR, 0, SLVERR], bad
            answers = await master.read([good, bad])
            assert answers[0] == content(memory, good)
            assert [response for _, response in answers[1]] == [SLVERR] * len(bad.words), bad
        assert np.array_equal(memory[-ROW:], before[0]) and np.array_equal(memory[:ROW], before[1])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def registers_are_read_back(dut):
    async with board(dut):
        master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "registers_"), dut.clk, dut.rst)
        for name, bits in (("dfii_pi0_address", 15), ("dfii_pi1_wrdata_high", 32), ("init_done", 1)):
            value = random.getrandbits(bits)
            await master.write_dword(REGISTERS[name] - REGISTERS_BASE, value)
            assert await master.read_dword(REGISTERS[name] - REGISTERS_BASE) == value, name


BANDWIDTH = {
    "sequential": (0.93, 0.91),
    "scattered": (0.93, 0.91),
    "lines": (0.5, 0.475),
    "words": (0.2, 0.19),
}
"""Of what the pins can carry, of reads and of writes."""


def load(kind: str) -> list[Burst]:
    """Bursts whose rate is measured."""
    size, count, last = {
        "sequential": (ARCH.burst_bytes, 60, 0),
        "scattered": (ARCH.burst_bytes, 60, 1 << 18),
        "lines": (64, 200, 1 << 22),
        "words": (WORD, 200, 1 << 24),
    }[kind]
    places = [random.randrange(last) if last else number for number in range(count)]
    words = size // WORD
    return [Burst(place * size, [0] * words, [EVERY_BYTE] * words, size=4) for place in places]


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def bandwidth(dut):
    """As many bursts outstanding as the slave takes; the first third fills its queues and is not counted."""
    async with board(dut) as ((master, _), _):
        for kind, expected in BANDWIDTH.items():
            for access, least in zip((master.read, master.write), expected, strict=True):
                bursts = load(kind)
                third = len(bursts) // 3
                await access(bursts[:third])
                cycles = await cycles_of(dut, access(bursts[third:]))
                moved = sum(len(burst.words) for burst in bursts[third:]) * WORD
                ratio = moved / (cycles * FABRIC_PS * 1e-12 * MEMORY.bytes_per_second)
                dut._log.info(f"{access.__name__}, {kind}: {ratio:.4f} of the pins")
                assert abs(ratio - least) < 0.02, f"{access.__name__}, {kind}: {ratio:.4f} of the pins"


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def latency(dut):
    """Of a word in an open row, and in another row of the same bank."""
    async with board(dut) as ((master, _), _):
        await master.read([burst(1, 0)])
        for address, most in ((WORD, 30), (8 * ROW, 34)):
            cycles = await cycles_of(dut, master.read([burst(1, address)]))
            dut._log.info(f"latency {cycles}")
            assert cycles <= most


def test_ddr3() -> None:
    run_bench(Ddr3Board(), __name__, beside=controller_verilog(MEMORY))


def test_a_bus_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="data_bits: expected 128, a burst of the memory, got 64"):
        Ddr3(dataclasses.replace(ARCH, data_bits=64), BOARD)


def test_a_fabric_that_is_slower_than_the_words_is_refused() -> None:
    with pytest.raises(ValueError, match="clock_mhz: expected at least 45, half of the controller's, got 40"):
        Ddr3(ARCH, dataclasses.replace(BOARD, clock_mhz=40.0))


def test_another_memory_is_refused() -> None:
    wide = dataclasses.replace(MEMORY, data_bits=32)
    with pytest.raises(ValueError, match="memory: expected one channel of DDR3 with 16 bits, got 1 of ddr3 with 32"):
        Ddr3(ARCH, dataclasses.replace(BOARD, memory=wide))
