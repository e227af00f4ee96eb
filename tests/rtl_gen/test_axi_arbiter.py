"""The AXI4 arbiter: each master gets its own data and answers, whatever the other does, and neither is kept waiting."""

import random

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.axi_arbiter import AxiArbiter
from sim.bench import streams
from sim.bench.axi import Burst, Master
from sim.bench.memory import serve_writes
from sim.bench.runner import run_bench

ARCH = Arch(columns=8, data_bits=32, burst_bytes=256)
SIZE = 1 << 14
INPUTS = ("arready", "rvalid", "awready", "wready", "bvalid")
"""Of the slave: what offers or takes something."""


class _Slave:
    """The slave's port under the names that ``sim.bench.memory`` looks for."""

    def __init__(self, dut):
        self._dut = dut
        self.clk = dut.clk

    def __getattr__(self, name: str):
        return getattr(self._dut, f"slave__{name}")


async def serve_reads(dut, memory: bytearray, pattern: streams.Pattern) -> None:
    """Answer the slave's reads in their order; words at multiples of 60 bytes are errors."""
    port, queue, active, offered = _Slave(dut), [], pattern(), False
    while True:
        port.arready.value = int(next(active))
        offered = offered or (bool(queue) and next(active))
        port.rvalid.value = int(offered)
        if offered:
            address, last = queue[0]
            port.rdata.value = int.from_bytes(memory[address : address + 4], "little")
            port.rlast.value, port.rresp.value = int(last), 2 * (address % 60 == 0)
        await ReadOnly()
        if offered and int(port.rready.value):
            queue.pop(0)
            offered = False
        if int(port.arvalid.value) and int(port.arready.value):
            first, length = int(port.araddr.value), int(port.arlen.value)
            queue += [(first + 4 * word, word == length) for word in range(length + 1)]
        await RisingEdge(dut.clk)


def bursts(half: int) -> list[Burst]:
    """Of one master, in its own half of the memory, each within 256 bytes."""
    out = []
    for _ in range(25):
        words = [random.getrandbits(32) for _ in range(random.choice((1, 1, 2, 3, 16)))]
        address = half * SIZE // 2 + random.randrange(SIZE // 512) * 256 + 4 * random.randrange(65 - len(words))
        out.append(Burst(address, words, [random.randrange(16) for _ in words]))
    return out


def apply(memory: bytearray, burst: Burst) -> None:
    for number, (word, strobe) in enumerate(zip(burst.words, burst.strobes, strict=True)):
        for lane in range(4):
            if strobe >> lane & 1:
                memory[burst.address + 4 * number + lane] = word >> 8 * lane & 255


def content(memory: bytearray, burst: Burst) -> list[tuple[int, int]]:
    places = range(burst.address, burst.address + 4 * len(burst.words), 4)
    return [(int.from_bytes(memory[at : at + 4], "little"), 2 * (at % 60 == 0)) for at in places]


async def begin(dut) -> list[Master]:
    for name in INPUTS:
        getattr(dut, f"slave__{name}").value = 0
    masters = [Master(dut, f"master_{number}__") for number in range(2)]
    await streams.start(dut)
    return masters


async def work(master: Master, half: int, memory: bytearray, idle: streams.Pattern, stall: streams.Pattern) -> None:
    """Writes and reads at the same time, in places of their own, then reads of all that was written."""
    expected = bytearray(memory)
    writes, reads = bursts(half), bursts(half)
    written = {address for burst in writes for address in range(burst.address, burst.address + 4 * len(burst.words))}
    reads = [read for read in reads if not written & set(range(read.address, read.address + 4 * len(read.words)))]
    writing = cocotb.start_soon(master.write(writes, idle, stall))
    try:
        assert await master.read(reads, idle, stall) == [content(expected, read) for read in reads]
        assert await writing == [0] * len(writes)
    finally:
        writing.cancel()
    for write in writes:
        apply(expected, write)
    assert await master.read(writes, idle, stall) == [content(expected, write) for write in writes]


async def work_of_both(dut, masters, memory: bytearray, idle: streams.Pattern, stall: streams.Pattern) -> None:
    slave = [cocotb.start_soon(serve_reads(dut, memory, stall)),
             cocotb.start_soon(serve_writes(_Slave(dut), ARCH, memory, stall))]  # fmt: skip
    working = [
        cocotb.start_soon(work(master, half, memory, idle, streams.PATTERNS["sometimes"]))
        for half, master in enumerate(masters)
    ]
    try:
        for task in working:
            await task
    finally:
        for task in slave + working:
            task.cancel()


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def each_master_gets_its_own(dut, idle, stall):
    masters = await begin(dut)
    memory = bytearray(random.randbytes(SIZE))
    await work_of_both(dut, masters, memory, streams.PATTERNS[idle], streams.PATTERNS[stall])


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def one_master_alone_has_all_of_the_bus(dut):
    """A word a cycle, and a burst of one word every cycle."""
    masters = await begin(dut)
    memory = bytearray(SIZE)
    cocotb.start_soon(serve_reads(dut, memory, streams.always))
    for size, most in ((64, 660), (1, 30)):
        reading = cocotb.start_soon(masters[1].read([Burst(0, [0] * size)] * (10 if size > 1 else 16)))
        cycles = 0
        while not reading.done():
            await RisingEdge(dut.clk)
            cycles += 1
        assert cycles <= most


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def reset_in_flight(dut):
    """With bursts of both masters under way; the slave is reset, too."""
    masters = await begin(dut)
    memory = bytearray(random.randbytes(SIZE))
    for _ in range(8):
        working = cocotb.start_soon(work_of_both(dut, masters, memory, streams.always, streams.PATTERNS["sometimes"]))
        await ClockCycles(dut.clk, random.randint(1, 200))
        await streams.interrupt(dut, working, *(f"slave__{name}" for name in INPUTS))
        for master in masters:
            master.idle()
        await streams.reset(dut)
        await work_of_both(dut, masters, memory, streams.always, streams.always)


def test_axi_arbiter() -> None:
    run_bench(AxiArbiter(ARCH), __name__)
