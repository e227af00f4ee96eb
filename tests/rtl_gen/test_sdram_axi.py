"""The AXI4 slave in front of the controller: how bursts are cut, ordered and answered; its memory has any speed."""

import random

import cocotb
from cocotb.triggers import ClockCycles, RisingEdge

from boards import DEFAULT_BOARD, load_board
from moe_hw.fit import arch_of
from rtl_gen.bus import SLVERR
from rtl_gen.sdram_axi import READ_WORDS, SdramAxi
from rtl_gen.sdram_types import segment_layout, word_layout
from sim.bench import streams
from sim.bench.axi import Burst, Master
from sim.bench.runner import run_bench

BOARD = load_board(DEFAULT_BOARD)
MEMORY = BOARD.memory
ROW_WORDS = MEMORY.row_bytes // 4
INPUTS = ("segments__ready", "writes__ready", "words__valid")


class Controller:
    """Serves segments in order, from a memory that holds its own word numbers where nothing was written."""

    def __init__(self, dut, pattern: streams.Pattern):
        self.memory: dict[int, int] = {}
        self.segments: list[dict[str, int]] = []
        self.words = 0  # asked for and not yet sent
        self._dut = dut
        self._pattern = pattern
        self._written: list[dict[str, int]] = []
        self._reads: list[int] = []
        self.tasks = [cocotb.start_soon(work) for work in (self._take_segments(), self._take_words(), self._send())]

    def stop(self) -> None:
        for task in self.tasks:
            task.cancel()

    async def _take_words(self) -> None:
        while True:
            self._written += await streams.receive(self._dut, "writes", word_layout(MEMORY), 1, self._pattern)

    async def _take_segments(self) -> None:
        while True:
            (segment,) = await streams.receive(self._dut, "segments", segment_layout(MEMORY), 1, self._pattern)
            self.segments.append(segment)
            assert segment["column"] + segment["length"] < ROW_WORDS, "a segment leaves its row"
            first = (segment["row"] * MEMORY.banks + segment["bank"]) * ROW_WORDS + segment["column"]
            count = segment["length"] + 1
            if segment["write"]:
                assert len(self._written) >= count, "a write is sent before its words"
                for place in range(first, first + count):
                    word = self._written.pop(0)
                    mask = sum(255 << 8 * lane for lane in range(4) if word["strobe"] >> lane & 1)
                    if not segment["masked"]:
                        self.memory[place] = self.at(place) & ~mask | word["data"] & mask
            else:
                self.words += count
                assert self.words <= READ_WORDS, "more words are asked for than there is room for"
                self._reads += [self.at(place) for place in range(first, first + count)]

    async def _send(self) -> None:
        while True:
            if not self._reads:
                await RisingEdge(self._dut.clk)
                continue
            await streams.send(self._dut, "words", 32, [self._reads.pop(0)], self._pattern)
            self.words -= 1

    def at(self, place: int) -> int:
        return self.memory.get(place, place)


async def begin(dut) -> Master:
    for name in INPUTS:
        getattr(dut, name).value = 0
    master = Master(dut, "axi__")
    await streams.start(dut)
    return master


def burst(words: int | None = None) -> Burst:
    size = words or random.choice((1, 2, 3, 9, 64, 128, 255, 256))
    row = random.choice((0, 1, 3, 4, 32766))
    address = (row * ROW_WORDS + random.choice((0, 1, 100, ROW_WORDS - 1))) * 4
    return Burst(address, [random.getrandbits(32) for _ in range(size)], [random.randrange(16) for _ in range(size)])


async def work(dut, master: Master, idle: streams.Pattern, stall: streams.Pattern, pattern: streams.Pattern) -> None:
    """Reads of words that are not written, next to writes; then reads of what was written."""
    controller = Controller(dut, pattern)
    writing = None
    try:
        writes = [burst() for _ in range(8)]
        reads = [
            Burst(1 << 20 | at << 10 | random.choice((0, 4, 1020)), [0] * random.randint(1, 256)) for at in range(8)
        ]
        writing = cocotb.start_soon(master.write(writes, idle, stall))
        wanted = [[(read.address // 4 + word, 0) for word in range(len(read.words))] for read in reads]
        assert await master.read(reads, idle, stall) == wanted
        assert await writing == [0] * len(writes)
        got = await master.read(writes, idle, stall)
        for answer, write in zip(got, writes, strict=True):
            assert answer == [(controller.at(write.address // 4 + word), 0) for word in range(len(write.words))]
    finally:
        controller.stop()
        if writing is not None:
            writing.cancel()


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def bursts_come_and_go(dut, idle, stall):
    master = await begin(dut)
    await work(dut, master, streams.PATTERNS[idle], streams.PATTERNS[stall], streams.PATTERNS[stall])


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def an_answer_waits_for_its_master(dut):
    """While reads go on, however many."""
    master = await begin(dut)
    controller = Controller(dut, streams.always)
    writing = cocotb.start_soon(master.write([burst(1), burst(2)], stall=streams.sometimes(0.02)))
    for _ in range(10):
        await master.read([burst(3)])
    assert await writing == [0, 0]
    controller.stop()


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def words_are_not_asked_for_without_room(dut):
    """A master that takes nothing: the reads stop; then all words are there."""
    master = await begin(dut)
    controller = Controller(dut, streams.always)
    reads = [Burst(4096 * number, [0] * 200) for number in range(6)]

    def after_a_while():
        yield from [False] * 3000
        yield from streams.always()

    answers = await master.read(reads, stall=after_a_while)
    assert answers == [[(read.address // 4 + word, 0) for word in range(200)] for read in reads]
    controller.stop()


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def neither_direction_waits_for_ever(dut):
    """While one is asked for without a pause, a burst of the other comes through."""
    master = await begin(dut)
    controller = Controller(dut, streams.always)
    reading = cocotb.start_soon(master.read([Burst(0, [0] * 256)] * 40))
    await ClockCycles(dut.clk, 100)
    assert await master.write([burst(1)]) == [0]
    assert not reading.done()
    await reading
    writing = cocotb.start_soon(master.write([burst(100) for _ in range(20)]))
    await ClockCycles(dut.clk, 100)
    await master.read([burst(1)])
    assert not writing.done()
    await writing
    controller.stop()


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def latency_and_throughput(dut):
    """Three cycles from a read to its segment, three from read to read, and five more than its words for a write."""
    master = await begin(dut)
    controller = Controller(dut, streams.always)
    reads = cocotb.start_soon(master.read([Burst(0, [0])] * 10))
    cycles = 0
    while not controller.segments:
        await RisingEdge(dut.clk)
        cycles += 1
    assert cycles - 1 <= 4
    while len(controller.segments) < 10:
        await RisingEdge(dut.clk)
        cycles += 1
    assert cycles <= 5 + 3 * 9
    await reads
    writing = cocotb.start_soon(master.write([Burst(0, [1] * 100, [15] * 100)] * 10))
    cycles = 0
    while not writing.done():
        await RisingEdge(dut.clk)
        cycles += 1
    assert cycles <= 10 * (100 + 5)
    controller.stop()


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def errors_keep_their_place(dut):
    master = await begin(dut)
    controller = Controller(dut, streams.always)
    good, bad = Burst(64, [5], [15]), Burst(MEMORY.size_bytes, [6, 7], [15, 15])
    assert await master.write([good, bad, good, bad, bad]) == [0, SLVERR, 0, SLVERR, SLVERR]
    assert controller.memory == {16: 5}
    answers = await master.read([good, bad, good])
    assert [[response for _, response in answer] for answer in answers] == [[0], [SLVERR] * 2, [0]]
    controller.stop()


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def reset_in_flight(dut):
    """With bursts at every stage; the memory is reset, too."""
    master = await begin(dut)
    for _ in range(10):
        working = cocotb.start_soon(work(dut, master, streams.always, streams.always, streams.PATTERNS["sometimes"]))
        await ClockCycles(dut.clk, random.randint(1, 600))
        await streams.interrupt(dut, working, *INPUTS)
        master.idle()
        await streams.reset(dut)
        await work(dut, master, streams.always, streams.always, streams.always)


def test_sdram_axi() -> None:
    run_bench(SdramAxi(arch_of(BOARD), MEMORY), __name__)
