"""Requests, good and bad, new and repeated, against the page's rules in Python; and what answers too late or never."""

import random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteRam

from moe_hw.arch import Arch
from moe_hw.bridge import HEADER, RESET_CYCLES, SEQUENCES, TIMEOUT_CYCLES, WINDOW, Opcode, Status, largest_count
from rtl_gen.frame_queue import LONGEST
from rtl_gen.framer import CONTENT
from rtl_gen.registers import CSR_ADDR_BITS
from rtl_gen.requests import Requests
from sim.bench import axi, streams
from sim.bench.runner import run_bench
from tests.moe_hw.peer import Peer

ARCH = Arch(addr_bits=24, burst_bytes=256)
LARGEST = largest_count(ARCH.burst_bytes)
MEMORY_BYTES = 4096
CSR_WORDS = 1 << CSR_ADDR_BITS - 2
STREAMS = ("frames__valid", "bytes__valid", "answers__ready", "room")
MEMORY = ("awready", "wready", "bvalid", "arready", "rvalid")


class Bench:
    """The block with memories on its buses, and the model that has to answer the same."""

    def __init__(self, dut: Any, pattern: streams.Pattern = streams.always):
        self.dut, self.pattern = dut, pattern
        self.ram = axi.memory(dut, MEMORY_BYTES, pattern)
        self.csrs = AxiLiteRam(AxiLiteBus.from_prefix(dut, "m_axil_"), dut.clk, dut.rst, size=4 * CSR_WORDS)
        self.peer = Peer(bytearray(MEMORY_BYTES), [0] * CSR_WORDS, ARCH.addr_bits, LARGEST)

    async def begin(self) -> None:
        for name in STREAMS:
            getattr(self.dut, name).value = 0
        await streams.start(self.dut)
        self.dut.room.value = 1

    async def ask(self, content: bytes | None) -> bytes:
        """The answer to one frame."""
        return await ask(self.dut, content, self.pattern)

    async def check(self, content: bytes | None) -> int:
        """Ask block and model; the status."""
        expected, found = self.peer.answer(content), await self.ask(content)
        if content is not None and content[1] == Opcode.CLOCK and expected[-1] == Status.OK:
            assert len(found) == len(expected)
            expected = expected[:1] + found[1:5] + expected[5:]
        assert found == expected
        if content is not None and content[1] == Opcode.RESET:  # that of the bench's memory for CSRs
            for word, value in enumerate(self.peer.csrs):
                self.csrs.write_dword(4 * word, value)
        return found[-1]

    def check_memories(self) -> None:
        assert self.ram.read(0, MEMORY_BYTES) == self.peer.memory
        assert [self.csrs.read_dword(4 * word) for word in range(CSR_WORDS)] == self.peer.csrs


async def ask(dut, content: bytes | None, pattern: streams.Pattern = streams.always) -> bytes:
    length = 0 if content is None else len(content)
    tasks = [
        cocotb.start_soon(streams.send(dut, "frames", range(LONGEST + 1), [length], pattern)),
        cocotb.start_soon(streams.send(dut, "bytes", 8, content or b"", pattern)),
    ]
    try:
        out = bytearray()
        while True:
            (value,) = await streams.receive(dut, "answers", CONTENT, 1, pattern)
            out.append(value["byte"])
            if value["last"]:
                break
        for task in tasks:
            await task
        return bytes(out)
    finally:
        for task in tasks:
            task.cancel()


def request(sequence: int, opcode: int, count: int = 0, address: int = 0, data: bytes = b"") -> bytes:
    return HEADER.pack(sequence % SEQUENCES, opcode, count, address) + data


def random_request(sequence: int) -> bytes:
    """Most of them sound."""
    opcode = random.choice([*Opcode][1:])
    if random.random() < 0.1:
        return request(sequence, random.randrange(10), random.choice((0, 4, 300)), random.getrandbits(32), bytes(4))
    if opcode in (Opcode.RESET, Opcode.CLOCK):
        return request(sequence, opcode)
    if opcode in (Opcode.CSR_READ, Opcode.CSR_WRITE):
        address, count = random.choice((4 * random.randrange(CSR_WORDS), random.randrange(4 * CSR_WORDS), 1 << 20)), 4
    else:
        address = random.randrange(MEMORY_BYTES) | (random.random() < 0.05) << 30
        count = min(random.choice((1, 5, random.randint(1, LARGEST))), LARGEST - address % LARGEST)
    writes = opcode in (Opcode.CSR_WRITE, Opcode.MEMORY_WRITE)
    return request(sequence, opcode, count, address, random.randbytes(count) if writes else b"")


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(pattern=list(streams.PATTERNS))
async def once_each_in_order(dut, pattern):
    """New, repeated and later numbers, bad frames and greetings in any order."""
    bench = Bench(dut, streams.PATTERNS[pattern])
    await bench.begin()
    assert await bench.check(random_request(0)) == Status.NO_SESSION
    assert await bench.check(None) == Status.MISSING
    await bench.check(request(250, Opcode.HELLO, 0, random.getrandbits(32)))
    sent: dict[int, bytes] = {}
    seen = set()
    for _ in range(250):
        expected = bench.peer.expected
        kind = random.choice(("new", "new", "new", "repeated", "later", "bad", "greeting"))
        if kind == "new":
            content = sent[expected] = random_request(expected)
        elif kind == "repeated" and sent:
            content = random.choice([*sent.values()][-WINDOW:])
        elif kind == "later":
            content = random_request(expected + random.randrange(1, SEQUENCES - WINDOW))
        elif kind == "greeting" and random.random() < 0.2:
            content = request(random.randrange(SEQUENCES), Opcode.HELLO, 0, random.getrandbits(32))
            sent.clear()
        else:
            content = None
        seen.add(await bench.check(content))
        sent = dict([*sent.items()][-WINDOW:])
    bench.check_memories()
    assert seen >= {Status.OK, Status.MALFORMED, Status.BAD_ADDRESS, Status.MISSING}


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def all_the_window_is_known(dut):
    """Sixteen writes, some of them refused, and all again: the same answers, and no effect."""
    bench = Bench(dut)
    await bench.begin()
    await bench.check(request(0, Opcode.HELLO))
    for first in (1, 1 + WINDOW, SEQUENCES - 8):
        await bench.check(request(first - 1, Opcode.HELLO))
        refused = random.sample(range(WINDOW), 5)
        sent = [
            request(first + number, Opcode.CSR_WRITE, 4 - (number in refused), 4 * number, random.randbytes(4))
            for number in range(WINDOW)
        ]
        statuses = [await bench.check(content) for content in sent]
        assert set(statuses) == {Status.OK, Status.MALFORMED}
        for word in range(CSR_WORDS):
            bench.csrs.write_dword(4 * word, word)
        assert [await bench.check(content) for content in sent] == statuses
        assert [bench.csrs.read_dword(4 * word) for word in range(CSR_WORDS)] == list(range(CSR_WORDS))
        for word, value in enumerate(bench.peer.csrs):
            bench.csrs.write_dword(4 * word, value)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def latency_reset_clock_and_room(dut):
    bench = Bench(dut)
    await bench.begin()
    await bench.check(request(0, Opcode.HELLO))
    # ---- from a frame to its access ----
    asking = cocotb.start_soon(bench.ask(request(1, Opcode.MEMORY_READ, 1, 5)))
    cycles = 0
    while not int(dut.m_axi__arvalid.value):
        await RisingEdge(dut.clk)
        cycles += 1
    await asking
    assert cycles == 15
    # ---- the pulse ----
    asking = cocotb.start_soon(bench.ask(request(2, Opcode.RESET)))
    pulse = 0
    while not asking.done():
        await RisingEdge(dut.clk)
        pulse += int(dut.reset.value)
    assert pulse == RESET_CYCLES
    # ---- the difference of two clocks is that of their requests ----
    clocks = []
    for sequence in (3, 4):
        answer = await bench.ask(request(sequence, Opcode.CLOCK))
        clocks.append((int.from_bytes(answer[1:5], "little"), cocotb.utils.get_sim_time("ns") // 10))
        await ClockCycles(dut.clk, 100)
    assert clocks[1][0] - clocks[0][0] == clocks[1][1] - clocks[0][1]
    # ---- nothing is begun without room for its answer ----
    dut.room.value = 0
    asking = cocotb.start_soon(bench.ask(request(5, Opcode.CLOCK)))
    for _ in range(50):
        await RisingEdge(dut.clk)
        assert not int(dut.answers__valid.value)
    dut.room.value = 1
    await asking


async def silent(dut) -> None:
    """Buses without anyone on the other side."""
    for name in (*STREAMS, *(f"m_axi__{name}" for name in MEMORY), *(f"m_axil__{name}" for name in MEMORY)):
        getattr(dut, name).value = 0
    dut.m_axi__rresp.value = dut.m_axi__bresp.value = 0
    await streams.start(dut)
    dut.room.value = 1


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def silent_buses_time_out(dut):
    """Each access within its bound; the CSRs are back after a reset, the memory when it answers at last."""
    await silent(dut)
    await ask(dut, request(0, Opcode.HELLO))
    begun = cocotb.utils.get_sim_time("ns")
    assert await ask(dut, request(1, Opcode.MEMORY_WRITE, 3, 0, b"abc")) == bytes([1, Status.TIMEOUT])
    assert TIMEOUT_CYCLES <= (cocotb.utils.get_sim_time("ns") - begun) // 10 <= TIMEOUT_CYCLES + 50
    assert await ask(dut, request(2, Opcode.CSR_WRITE, 4, 0, b"abcd")) == bytes([2, Status.TIMEOUT])
    assert await ask(dut, request(2, Opcode.CSR_WRITE, 4, 0, b"abcd")) == bytes([2, Status.TIMEOUT])  # at once
    assert await ask(dut, request(3, Opcode.RESET)) == bytes([3, Status.OK])
    csrs = AxiLiteRam(AxiLiteBus.from_prefix(dut, "m_axil_"), dut.clk, dut.rst, size=4 * CSR_WORDS)
    assert await ask(dut, request(4, Opcode.CSR_WRITE, 4, 8, b"efgh")) == bytes([4, Status.OK])
    assert csrs.read(0, 16) == bytes(8) + b"efgh" + bytes(4)
    # The memory takes the write that was given up, with nothing to store.
    assert int(dut.m_axi__awvalid.value) == 1
    ram = axi.memory(dut, MEMORY_BYTES)
    assert await ask(dut, request(5, Opcode.MEMORY_WRITE, 2, 6, b"xy")) == bytes([5, Status.OK])
    assert ram.read(0, 12) == bytes(6) + b"xy" + bytes(4)


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def a_memory_that_falls_silent_within_a_burst(dut):
    """The answer is short and says so; the burst's other words are dropped when they come."""
    await silent(dut)
    await ask(dut, request(0, Opcode.HELLO))
    asking = cocotb.start_soon(ask(dut, request(1, Opcode.MEMORY_READ, 16, 0)))
    dut.m_axi__arready.value = dut.m_axi__rvalid.value = 1
    dut.m_axi__rdata.value = 0x04030201
    words = 0
    while words < 2:
        await ReadOnly()
        words += int(dut.m_axi__rready.value)
        await RisingEdge(dut.clk)
    dut.m_axi__rvalid.value = 0
    assert await asking == bytes([1, 1, 2, 3, 4, 1, 2, 3, 4, Status.TIMEOUT])
    asking = cocotb.start_soon(ask(dut, request(2, Opcode.MEMORY_READ, 4, 0)))
    await ClockCycles(dut.clk, 100)
    dut.m_axi__rvalid.value = 1
    words = 0
    while not asking.done():
        await ReadOnly()
        words += int(dut.m_axi__rready.value)
        await RisingEdge(dut.clk)
        dut.m_axi__rdata.value = 0x08070605 if words >= 2 else 0x04030201
    assert await asking == bytes([2, 5, 6, 7, 8, Status.OK]) and words == 3


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def reset_in_flight(dut):
    bench = Bench(dut, streams.PATTERNS["bursts"])
    await bench.begin()
    for _ in range(10):
        async def work() -> None:
            await bench.ask(request(0, Opcode.HELLO))
            for sequence in range(1, 9):
                await bench.ask(random_request(sequence))

        working = cocotb.start_soon(work())
        await ClockCycles(dut.clk, random.randint(1, 800))
        await streams.interrupt(dut, working, *STREAMS)
        dut.room.value = 1
        assert await bench.ask(request(1, Opcode.CLOCK)) == bytes([1, Status.NO_SESSION])
        assert (await bench.ask(request(9, Opcode.HELLO)))[-1] == Status.OK
        assert await bench.ask(request(10, Opcode.MEMORY_WRITE, 3, 77, b"abc")) == bytes([10, Status.OK])
        assert await bench.ask(request(11, Opcode.MEMORY_READ, 3, 77)) == b"\x0babc\0"


def test_requests() -> None:
    run_bench(Requests(ARCH), __name__)
