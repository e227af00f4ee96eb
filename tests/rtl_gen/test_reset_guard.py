"""The reset guard: nothing of a reset accelerator stays under way, and nothing old reaches it afterwards."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.reset_guard import ResetGuard
from sim.bench import streams
from sim.bench.axi import Burst, Master
from sim.bench.runner import run_bench

ARCH = Arch(columns=8, data_bits=32, burst_bytes=256)
INPUTS = ("arready", "rvalid", "awready", "wready", "bvalid")
LONGEST_CYCLES = 6000
"""Of the drain: 16 bursts of 64 words, at a third of the cycles."""


class Slave:
    """A memory of words that hold their own address plus ``epoch``, and that checks its writes burst by burst."""

    def __init__(self, dut: Any, pattern: streams.Pattern):
        self.dut = dut
        self.pattern = pattern
        self.epoch = 0
        self.words: dict[int, int] = {}
        self.reads: deque[tuple[int, bool]] = deque()
        self.writes: deque[list[int]] = deque()  # address and words left of each burst
        self.answers = 0

    @property
    def idle(self) -> bool:
        return not (self.reads or self.writes or self.answers)

    def signal(self, name: str) -> Any:
        return getattr(self.dut, f"slave__{name}")

    async def serve(self) -> None:
        active = self.pattern()
        offered = answered = False
        while True:
            for name in ("arready", "awready"):
                self.signal(name).value = int(next(active))
            self.signal("wready").value = int(bool(self.writes) and next(active))
            offered = offered or (bool(self.reads) and next(active))
            answered = answered or (self.answers > 0 and next(active))
            self.signal("rvalid").value, self.signal("bvalid").value = int(offered), int(answered)
            if offered:
                address, last = self.reads[0]
                self.signal("rdata").value = address + self.epoch
                self.signal("rlast").value = int(last)
            await ReadOnly()
            if offered and int(self.signal("rready").value):
                self.reads.popleft()
                offered = False
            if answered and int(self.signal("bready").value):
                self.answers -= 1
                answered = False
            if int(self.signal("wvalid").value) and int(self.signal("wready").value):
                burst = self.writes[0]
                if int(self.signal("wstrb").value):
                    self.words[burst[0]] = int(self.signal("wdata").value)
                burst[0], burst[1] = burst[0] + 4, burst[1] - 1
                assert int(self.signal("wlast").value) == (burst[1] == 0), "wlast is not on the last word"
                if burst[1] == 0:
                    self.writes.popleft()
                    self.answers += 1
            for channel, taken in (("ar", self._read), ("aw", self._write)):
                if int(self.signal(f"{channel}valid").value) and int(self.signal(f"{channel}ready").value):
                    taken(int(self.signal(f"{channel}addr").value), int(self.signal(f"{channel}len").value))
            await RisingEdge(self.dut.clk)

    def _read(self, address: int, length: int) -> None:
        self.reads.extend((address + 4 * word, word == length) for word in range(length + 1))

    def _write(self, address: int, length: int) -> None:
        assert not self.writes, "an address before the words of the burst before"
        self.writes.append([address, length + 1])


def bursts() -> list[Burst]:
    out = []
    for _ in range(20):
        count = random.choice((1, 2, 3, 16, 64))
        out.append(Burst(256 * random.randrange(64), [random.getrandbits(32) for _ in range(count)], [15] * count))
    return out


async def begin(dut: Any, pattern: streams.Pattern) -> tuple[Master, Slave]:
    for name in INPUTS:
        getattr(dut, f"slave__{name}").value = 0
    for name in ("awvalid", "wvalid", "arvalid", "bready", "rready"):
        getattr(dut, f"csr_master__{name}").value = 0
    for name in ("awready", "wready", "arready", "bvalid", "rvalid"):
        getattr(dut, f"csr_slave__{name}").value = 1
    dut.ask.value = 0
    master, slave = Master(dut, "master__"), Slave(dut, pattern)
    await streams.start(dut)
    cocotb.start_soon(slave.serve())
    await leave_reset(dut, slave)
    return master, slave


async def leave_reset(dut: Any, slave: Slave) -> None:
    """Wait until the accelerator runs; nothing of it may be under way then."""
    for _ in range(LONGEST_CYCLES):
        await ReadOnly()
        if not int(dut.reset.value):
            assert slave.idle
            await RisingEdge(dut.clk)
            return
        for name in ("arvalid", "awvalid"):
            assert not int(slave.signal(name).value)
        for name in ("awvalid", "wvalid", "arvalid"):
            assert not int(getattr(dut, f"csr_slave__{name}").value)
        for name in ("awready", "wready", "arready"):
            assert not int(getattr(dut, f"csr_master__{name}").value)
        await RisingEdge(dut.clk)
    raise AssertionError(f"expected the end of the reset within {LONGEST_CYCLES} cycles")


async def transfers(master: Master, slave: Slave) -> None:
    """Reads and writes at once come through unchanged."""
    reads, writes = bursts(), bursts()
    idle = streams.PATTERNS[random.choice(list(streams.PATTERNS))]
    writing = cocotb.start_soon(master.write(writes, idle, idle))
    answers = await master.read(reads, idle, idle)
    await writing
    for burst, answer in zip(reads, answers, strict=True):
        places = range(burst.address, burst.address + 4 * len(burst.words), 4)
        assert [word for word, _ in answer] == [address + slave.epoch for address in places]
    expected = {}
    for burst in writes:
        expected.update({burst.address + 4 * at: word for at, word in enumerate(burst.words)})
    assert expected.items() <= slave.words.items()


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(stall=list(streams.PATTERNS))
async def passes_everything_on(dut: Any, stall: str) -> None:
    master, slave = await begin(dut, streams.PATTERNS[stall])
    await transfers(master, slave)


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(stall=list(streams.PATTERNS))
async def a_reset_at_any_time_leaves_nothing_behind(dut: Any, stall: str) -> None:
    master, slave = await begin(dut, streams.PATTERNS[stall])
    cut = 0
    for number in range(12):
        reads, writes = bursts(), bursts()
        before = dict(slave.words)
        working = [cocotb.start_soon(master.read(reads)), cocotb.start_soon(master.write(writes))]
        await ClockCycles(dut.clk, random.randint(1, 120))
        dut.ask.value = 1
        await RisingEdge(dut.clk)
        # The accelerator sees its reset with this edge.
        for task in working:
            task.cancel()
        master.idle()
        for name in ("awvalid", "wvalid", "arvalid"):
            getattr(dut, f"csr_master__{name}").value = 1
        cut += not slave.idle
        await ClockCycles(dut.clk, random.randint(0, 20))
        dut.ask.value = 0
        await RisingEdge(dut.clk)
        await leave_reset(dut, slave)
        # What was not sent when the reset came has not been written as anything else.
        sent = {burst.address + 4 * at: word for burst in writes for at, word in enumerate(burst.words)}
        for address, word in slave.words.items():
            assert word in (before.get(address), sent.get(address)) or word in {
                burst.words[(address - burst.address) // 4]
                for burst in writes
                if burst.address <= address < burst.address + 4 * len(burst.words)
            }
        for name in ("awvalid", "wvalid", "arvalid"):
            getattr(dut, f"csr_master__{name}").value = 0
        slave.epoch = (number + 1) << 20  # words of before would be seen
        await transfers(master, slave)
    assert cut > 3, "no reset met anything under way"


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def held_while_it_is_asked_for(dut: Any) -> None:
    await begin(dut, streams.always)
    dut.ask.value = 1
    await RisingEdge(dut.clk)
    for _ in range(40):
        await RisingEdge(dut.clk)
        await ReadOnly()
        assert int(dut.reset.value)
        await RisingEdge(dut.clk)


def test_reset_guard() -> None:
    run_bench(ResetGuard(ARCH), __name__)
