"""The master at LiteDRAM's port: one command for each word, and words that are there whenever LiteDRAM wants them."""

from __future__ import annotations

import random
from collections import deque

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from boards import load_board
from rtl_gen.native_master import STAGED_WORDS, NativeMaster
from rtl_gen.sdram_types import segment_layout, word_layout
from sim.bench import streams
from sim.bench.runner import run_bench

MEMORY = load_board("ecpix5-85f").memory
SEGMENT, WORD = segment_layout(MEMORY), word_layout(MEMORY)
INPUTS = (
    "segments__valid", "writes__valid", "port__cmd_ready", "port__wdata_ready", "port__rdata_valid",
    "port__rdata_payload_data",
)  # fmt: skip
READ_CLOCKS = 20


class Port:
    """LiteDRAM: takes commands and, some clocks later and without asking, the words of writes."""

    def __init__(self, dut, pattern: streams.Pattern):
        self.commands: list[tuple[int, int]] = []
        self.written: list[tuple[int, int]] = []
        self._dut, self._pattern = dut, pattern

    async def serve(self) -> None:
        dut = self._dut
        active = self._pattern()
        now, latest = 0, 0
        writes: deque[int] = deque()
        reads: deque[tuple[int, int]] = deque()
        while True:
            await RisingEdge(dut.clk)
            now += 1
            # A bank's queue holds eight commands, and a write's word is wanted six clocks later at the earliest.
            dut.port__cmd_ready.value = ready = int(next(active) and len(writes) < STAGED_WORDS - 4)
            dut.port__wdata_ready.value = wanted = int(bool(writes) and writes[0] <= now)
            dut.port__rdata_valid.value = found = int(bool(reads) and reads[0][0] == now)
            dut.port__rdata_payload_data.value = reads.popleft()[1] if found else random.getrandbits(128)
            await ReadOnly()
            if ready and int(dut.port__cmd_valid.value):
                address, write = int(dut.port__cmd_payload_addr.value), int(dut.port__cmd_payload_we.value)
                self.commands.append((address, write))
                if write:
                    latest = max(latest + 1, now + random.randrange(6, 20))
                    writes.append(latest)
                else:
                    reads.append((now + READ_CLOCKS, address))
            if wanted:
                writes.popleft()
                data, strobe = dut.port__wdata_payload_data.value, dut.port__wdata_payload_we.value
                self.written.append((int(data), int(strobe)))


def random_segment() -> dict[str, int]:
    column = random.randrange(128)
    return {
        "write": random.randrange(2), "masked": int(random.random() < 0.2), "column": column,
        "bank": random.randrange(8), "row": random.getrandbits(15),
        "length": random.choice((0, 1, random.randrange(128))) % (128 - column),
    }  # fmt: skip


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(pattern=list(streams.PATTERNS))
async def random_segments(dut, pattern):
    for name in INPUTS:
        getattr(dut, name).value = 0
    await streams.start(dut)
    port = Port(dut, streams.PATTERNS[pattern])
    serving = cocotb.start_soon(port.serve())
    segments = [random_segment() for _ in range(40)]
    words = [
        {"data": random.getrandbits(128), "strobe": random.getrandbits(16)}
        for segment in segments if segment["write"] for _ in range(segment["length"] + 1)
    ]  # fmt: skip
    commands, written = [], []
    supply = iter(words)
    for segment in segments:
        first = (segment["row"] << 3 | segment["bank"]) << 7 | segment["column"]
        for address in range(first, first + segment["length"] + 1):
            commands.append((address, segment["write"]))
            if segment["write"]:
                word = next(supply)
                written.append((word["data"], 0 if segment["masked"] else word["strobe"]))
    found: list[int] = []

    async def receive() -> None:
        while True:
            await ReadOnly()
            if int(dut.word_valid.value):
                found.append(int(dut.words.value))
            await RisingEdge(dut.clk)

    receiving = cocotb.start_soon(receive())
    sending = cocotb.start_soon(streams.send(dut, "writes", WORD, words, streams.PATTERNS[pattern]))
    await streams.send(dut, "segments", SEGMENT, segments, streams.PATTERNS[pattern])
    await sending
    reads = [address for address, write in commands if not write]
    while len(port.written) < len(written) or len(found) < len(reads):
        await RisingEdge(dut.clk)
    assert port.commands == commands
    assert port.written == written
    assert found == reads
    for task in (serving, receiving):
        task.cancel()


def test_native_master() -> None:
    run_bench(NativeMaster(MEMORY), __name__)
