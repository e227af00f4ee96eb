"""Bytes of memory, aligned or not, whatever holds up the bus; errors, and accesses that nobody waits for."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import Arch
from moe_hw.bridge import largest_count
from rtl_gen.memory_access import MemoryAccess
from sim.bench import streams
from sim.bench.memory import serve_writes
from sim.bench.runner import parameter, run_bench

MEMORY_BYTES = 4096
INPUTS = ("start", "write", "address", "count", "abandon", "written__valid", "found__ready")
SLAVE = ("awready", "wready", "bvalid", "arready", "rvalid", "rlast", "rresp")


def sizes(data_bits: int) -> Arch:
    return Arch(columns=8, data_bits=data_bits, burst_bytes=256 if data_bits == 32 else 1024)


def bench_arch() -> Arch:
    return sizes(int(parameter("data_bits")))


async def serve_reads(dut, memory: bytes, pattern: streams.Pattern = streams.always, errors: tuple[int, ...] = ()):
    """Answer AXI4 reads forever; words that hold a byte of ``errors`` are answered SLVERR."""
    word_bytes = bench_arch().data_bits // 8
    active = pattern()
    words: list[int] = []
    shown = False
    while True:
        dut.arready.value = int(next(active))
        shown = bool(words) and (shown or next(active))
        dut.rvalid.value = int(shown)
        if shown:
            dut.rdata.value = int.from_bytes(memory[words[0] : words[0] + word_bytes], "little")
            dut.rresp.value = 2 * any(words[0] <= address < words[0] + word_bytes for address in errors)
            dut.rlast.value = int(len(words) == 1)
        await ReadOnly()
        if shown and int(dut.rready.value):
            words.pop(0)
            shown = False
        if int(dut.arvalid.value) and int(dut.arready.value):
            assert not words and int(dut.araddr.value) % word_bytes == 0 and 1 << int(dut.arsize.value) == word_bytes
            first = int(dut.araddr.value)
            words = [first + at * word_bytes for at in range(int(dut.arlen.value) + 1)]
        await RisingEdge(dut.clk)


async def begin(dut) -> Arch:
    for name in (*INPUTS, *SLAVE):
        getattr(dut, name).value = 0
    await streams.start(dut)
    return bench_arch()


async def start(dut, write: bool, address: int, count: int) -> None:
    dut.start.value, dut.write.value, dut.address.value, dut.count.value = 1, int(write), address, count
    await RisingEdge(dut.clk)
    dut.start.value = 0
    dut.write.value, dut.address.value, dut.count.value = int(not write), 0, 0


async def done(dut) -> int:
    """Wait for the end; the response."""
    while True:
        await ReadOnly()
        busy, response = int(dut.busy.value), int(dut.response.value)
        await RisingEdge(dut.clk)
        if not busy:
            return response


async def read(dut, address: int, count: int, pattern: streams.Pattern = streams.always) -> tuple[bytes, int]:
    await start(dut, False, address, count)
    data = bytes(await streams.receive(dut, "found", 8, count, pattern))
    return data, await done(dut)


async def write(dut, address: int, data: bytes, pattern: streams.Pattern = streams.always) -> int:
    await start(dut, True, address, len(data))
    await streams.send(dut, "written", 8, data, pattern)
    return await done(dut)


def random_range(arch: Arch) -> tuple[int, int]:
    """Address and count within a burst: odd ones, single bytes and whole bursts."""
    largest = largest_count(arch.burst_bytes)
    block = random.randrange(MEMORY_BYTES // largest) * largest
    offset = random.choice((0, 1, largest - 1, random.randrange(largest)))
    count = random.choice((1, 2, 3, largest, random.randrange(1, 40)))
    return block + offset, min(count, largest - offset)


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def random_accesses(dut, idle, stall):
    arch = await begin(dut)
    memory = bytearray(random.randbytes(MEMORY_BYTES))
    model = bytearray(memory)
    cocotb.start_soon(serve_writes(dut, arch, memory, streams.PATTERNS[stall]))
    cocotb.start_soon(serve_reads(dut, memory, streams.PATTERNS[stall]))
    for _ in range(20):
        address, count = random_range(arch)
        if random.random() < 0.5:
            model[address : address + count] = data = random.randbytes(count)
            assert await write(dut, address, data, streams.PATTERNS[idle]) == 0
        else:
            assert await read(dut, address, count, streams.PATTERNS[idle]) == (model[address : address + count], 0)
        assert memory == model


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def errors_are_those_of_the_last_access(dut):
    arch = await begin(dut)
    memory = bytearray(random.randbytes(MEMORY_BYTES))
    reading = cocotb.start_soon(serve_reads(dut, memory, errors=(100,)))
    assert (await read(dut, 64, 128))[1] == 2
    assert await read(dut, 0, 64) == (memory[:64], 0)
    reading.cancel()
    for response in (3, 0, 2):
        writing = cocotb.start_soon(serve_writes(dut, arch, memory, response=response))
        assert await write(dut, 5, b"12345") == response
        writing.cancel()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def abandoned_accesses_end_when_the_memory_wakes_up(dut):
    """Anywhere in an access: nothing more is written, all bursts have their length, and the next access is whole."""
    arch = await begin(dut)
    memory = bytearray(random.randbytes(MEMORY_BYTES))
    for number in range(24):
        writes = bool(number % 2)
        before = bytes(memory)
        address, count = random_range(arch)
        serving = [cocotb.start_soon(serve_writes(dut, arch, memory, streams.sometimes(0.2))),
                   cocotb.start_soon(serve_reads(dut, memory, streams.sometimes(0.2)))]  # fmt: skip
        await start(dut, writes, address, count)
        prefix, width = ("written", 8) if writes else ("found", 8)
        data = random.randbytes(count)
        moving = cocotb.start_soon(
            streams.send(dut, prefix, width, data) if writes else streams.receive(dut, prefix, width, count)
        )
        await ClockCycles(dut.clk, random.randint(1, 30))
        moving.cancel()
        dut.written__valid.value = dut.found__ready.value = 0
        dut.abandon.value = 1
        await RisingEdge(dut.clk)
        dut.abandon.value = 0
        await done(dut)
        allowed = bytearray(before)
        if writes:
            allowed[address : address + count] = data
        assert all(byte in options for byte, *options in zip(memory, before, allowed, strict=True))
        first, size = random_range(arch)
        assert await read(dut, first, size) == (memory[first : first + size], 0)
        assert await write(dut, first, bytes(size)) == 0
        assert memory[first : first + size] == bytes(size)
        for task in serving:
            task.cancel()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def latency_and_throughput(dut):
    """A cycle to the address; a bus word in a cycle more than it has bytes, and one for this memory."""
    arch = await begin(dut)
    for writes, valid in ((True, dut.awvalid), (False, dut.arvalid)):
        await start(dut, writes, 0, 1)
        await ReadOnly()
        assert int(valid.value) == 1
        await RisingEdge(dut.clk)
        await streams.reset(dut)
    memory = bytearray(random.randbytes(MEMORY_BYTES))
    cocotb.start_soon(serve_writes(dut, arch, memory))
    cocotb.start_soon(serve_reads(dut, memory))
    count, word_bytes = largest_count(arch.burst_bytes), arch.data_bits // 8
    for access in (read(dut, 0, count), write(dut, 0, bytes(count))):
        begun = cocotb.utils.get_sim_time("ns")
        await access
        assert (cocotb.utils.get_sim_time("ns") - begun) / 10 <= count // word_bytes * (word_bytes + 2) + 12


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def reset_in_flight(dut):
    arch = await begin(dut)
    memory = bytearray(random.randbytes(MEMORY_BYTES))
    for number in range(10):
        serving = [cocotb.start_soon(serve_writes(dut, arch, memory, streams.PATTERNS["bursts"])),
                   cocotb.start_soon(serve_reads(dut, memory, streams.PATTERNS["bursts"]))]  # fmt: skip
        working = cocotb.start_soon(write(dut, 70, random.randbytes(60)) if number % 2 else read(dut, 70, 60))
        await ClockCycles(dut.clk, random.randint(1, 60))
        for task in serving:
            task.cancel()
        await streams.interrupt(dut, working, *INPUTS, *SLAVE)
        assert int(dut.busy.value) == 0
        serving = [cocotb.start_soon(serve_writes(dut, arch, memory)), cocotb.start_soon(serve_reads(dut, memory))]
        data = random.randbytes(9)
        assert await write(dut, 201, data) == 0
        assert await read(dut, 200, 11) == (memory[200:201] + data + memory[210:211], 0)
        for task in serving:
            task.cancel()


@pytest.mark.parametrize("data_bits", [32, 128])
def test_memory_access(data_bits: int) -> None:
    run_bench(MemoryAccess(sizes(data_bits)), __name__, data_bits=data_bits)
