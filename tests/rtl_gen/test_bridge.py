"""The bridge at its pins: whole exchanges on a line that loses, repeats, changes and adds bytes, and on another one."""

import random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteRam

from moe_hw.arch import Arch
from moe_hw.bridge import Decoder, Opcode, Status, encode
from rtl_gen.bridge import Bridge
from rtl_gen.registers import CSR_ADDR_BITS
from sim.bench import axi, streams
from sim.bench.runner import run_bench
from sim.serial import LineFaults
from tests.moe_hw.peer import Peer
from tests.rtl_gen.test_requests import request

ARCH = Arch(addr_bits=24, burst_bytes=256)
CLOCKS = 4
MEMORY_BYTES = 4096
CSR_WORDS = 1 << CSR_ADDR_BITS - 2


class Line:
    """The far end of the serial line."""

    def __init__(self, dut: Any):
        self.dut = dut
        self.decoder = Decoder()
        self.received = bytearray()

    async def send(self, data: bytes) -> None:
        for byte in data:
            for level in (0, *(byte >> at & 1 for at in range(8)), 1):
                self.dut.rx.value = level
                await ClockCycles(self.dut.clk, CLOCKS)

    async def receive(self) -> None:
        """Collects bytes forever."""
        while True:
            await RisingEdge(self.dut.clk)
            if int(self.dut.tx.value):
                continue
            await ClockCycles(self.dut.clk, CLOCKS // 2)
            byte = 0
            for at in range(8):
                await ClockCycles(self.dut.clk, CLOCKS)
                byte |= int(self.dut.tx.value) << at
            await ClockCycles(self.dut.clk, CLOCKS)
            assert int(self.dut.tx.value) == 1
            self.received.append(byte)

    async def settle(self) -> list[bytes | None]:
        """All frames that come until the line is quiet."""
        quiet, seen = 0, 0
        while quiet < 3:
            await ClockCycles(self.dut.clk, 400)
            quiet = quiet + 1 if len(self.received) == seen else 0
            seen = len(self.received)
        data = bytes(self.received)
        self.received.clear()
        return list(self.decoder.feed(data))


async def begin(dut, pattern: streams.Pattern = streams.always) -> tuple[Line, Any, Any, Peer]:
    dut.rx.value = 1
    dut.received__valid.value = dut.sent__ready.value = 0
    ram = axi.memory(dut, MEMORY_BYTES, pattern)
    csrs = AxiLiteRam(AxiLiteBus.from_prefix(dut, "m_axil_"), dut.clk, dut.rst, size=4 * CSR_WORDS)
    await streams.start(dut)
    line = Line(dut)
    cocotb.start_soon(line.receive())
    await ClockCycles(dut.clk, 8)
    return line, ram, csrs, Peer(bytearray(MEMORY_BYTES), [0] * CSR_WORDS, ARCH.addr_bits, ARCH.burst_bytes)


def random_content(sequence: int) -> bytes:
    address = random.randrange(MEMORY_BYTES)
    count = min(random.randint(1, 60), ARCH.burst_bytes - address % ARCH.burst_bytes)
    word = 4 * random.randrange(CSR_WORDS)
    return random.choice(
        (
            request(sequence, Opcode.MEMORY_WRITE, count, address, random.randbytes(count)),
            request(sequence, Opcode.MEMORY_READ, count, address),
            request(sequence, Opcode.CSR_WRITE, 4, word, random.randbytes(4)),
            request(sequence, Opcode.CSR_READ, 4, word),
        )
    )


@cocotb.test(timeout_time=50, timeout_unit="ms")
@cocotb.parametrize(stall=list(streams.PATTERNS))
async def requests_in_a_row(dut, stall):
    """Several wait in the queue; answers come in their order."""
    line, ram, csrs, peer = await begin(dut, streams.PATTERNS[stall])
    contents = [request(0, Opcode.HELLO, 0, 7), *(random_content(sequence) for sequence in range(1, 30))]
    await line.send(b"".join(map(encode, contents)))
    assert await line.settle() == list(map(peer.answer, contents))
    assert ram.read(0, MEMORY_BYTES) == peer.memory
    assert [csrs.read_dword(4 * word) for word in range(CSR_WORDS)] == peer.csrs


@cocotb.test(timeout_time=100, timeout_unit="ms")
async def a_disturbed_line(dut):
    """Every frame that arrives has the answer of the model to what arrived, and what did not has no effect."""
    line, ram, csrs, peer = await begin(dut)
    await line.send(encode(request(0, Opcode.HELLO)))
    assert await line.settle() == [peer.answer(request(0, Opcode.HELLO))]
    faults = LineFaults(random.getrandbits(32), 0.01)
    for _ in range(25):
        contents = [random_content(peer.expected + ahead) for ahead in range(6)]
        arrived = faults(b"".join(map(encode, contents))) + b"\x7e"
        frames = list(Decoder().feed(arrived))
        await line.send(arrived)
        assert await line.settle() == list(map(peer.answer, frames))
        assert ram.read(0, MEMORY_BYTES) == peer.memory
    assert [csrs.read_dword(4 * word) for word in range(CSR_WORDS)] == peer.csrs
    assert faults.count > 20


@cocotb.test(timeout_time=50, timeout_unit="ms")
@cocotb.parametrize(stall=list(streams.PATTERNS))
async def the_other_line(dut, stall):
    """More requests than the queue holds wait for room; each is answered on the line that it came from."""
    line, ram, _, peer = await begin(dut, streams.PATTERNS[stall])
    for round_ in range(3):
        first = peer.expected
        count = ARCH.burst_bytes
        contents = [request(first, Opcode.HELLO, 0, round_)] + [
            request(first + 1 + at & 255, Opcode.MEMORY_WRITE, count, count * at, random.randbytes(count))
            for at in range(MEMORY_BYTES // count)
        ]
        expected = [peer.answer(content) for content in contents]
        sent = b"".join(map(encode, contents))
        offering = cocotb.start_soon(streams.send(dut, "received", 8, sent))
        size = sum(len(encode(answer)) for answer in expected)
        found = await streams.receive(dut, "sent", 8, size, streams.PATTERNS[stall])
        await offering
        assert list(Decoder().feed(bytes(found))) == expected
        assert ram.read(0, MEMORY_BYTES) == peer.memory and not line.received
        content = random_content(peer.expected)
        await line.send(encode(content))
        assert await line.settle() == [peer.answer(content)]
        assert not int(dut.sent__valid.value)


@cocotb.test(timeout_time=50, timeout_unit="ms")
async def latency(dut):
    """23 cycles from the middle of the request's last bit."""
    line, _, _, _ = await begin(dut)
    await line.send(encode(request(0, Opcode.HELLO)))
    await line.settle()
    await line.send(encode(request(1, Opcode.MEMORY_READ, 1, 5)))
    cycles = 0
    while int(dut.tx.value):
        await RisingEdge(dut.clk)
        cycles += 1
    assert cycles == 23 - CLOCKS // 2


@cocotb.test(timeout_time=50, timeout_unit="ms")
async def reset_in_flight(dut):
    line, _, _, _ = await begin(dut)
    for _ in range(6):
        contents = [request(0, Opcode.HELLO), *(random_content(sequence) for sequence in range(1, 9))]
        working = cocotb.start_soon(line.send(b"".join(map(encode, contents))))
        await ClockCycles(dut.clk, random.randint(1, 4000))
        await streams.interrupt(dut, working)
        dut.rx.value = 1
        await line.settle()
        line.decoder = Decoder()  # an answer may have been cut
        await line.send(encode(request(1, Opcode.CLOCK)) + encode(request(5, Opcode.HELLO)))
        first, second = await line.settle()
        assert first == bytes([1, Status.NO_SESSION]) and second is not None and second[-1] == Status.OK


def test_bridge() -> None:
    run_bench(Bridge(ARCH, CLOCKS * 1000, 1000, network=True), __name__)
