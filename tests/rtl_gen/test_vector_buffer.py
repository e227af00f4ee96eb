"""The vector buffer: where mantissas and exponents land, in either half, and that the other half is left alone."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ROWS, Arch
from rtl_gen.loader import line_layout
from rtl_gen.vector_buffer import VectorBuffer
from sim.bench import streams
from sim.bench.runner import parameter, run_bench

SIZES = {
    "one": Arch(vector_blocks=64, max_tokens=1, slots=1),
    "several": Arch(vector_blocks=256, max_tokens=16, slots=8),
}


class Bench:
    """The buffer, what the row banks would hold, and what should be where."""

    def __init__(self, dut):
        self.dut = dut
        self.arch = SIZES[parameter("sizes")]
        self.bank: dict[int, int] = {}
        self.loaded = 0
        self.placed: list[dict] = [{}, {}]
        """The vectors of each half's job: (slot, place of its first block) to its lines."""
        self.tokens: dict[int, int] = {}

    async def start(self) -> None:
        self.dut.valid.value = 0
        await streams.start(self.dut)
        cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        while True:
            await ReadOnly()
            if int(self.dut.x_write.value):
                self.bank[int(self.dut.x_address.value)] = int(self.dut.x.value)
            self.loaded += int(self.dut.loaded.value)
            await RisingEdge(self.dut.clk)

    async def load(
        self, half: int, slots: int, blocks: int, router: bool, pattern=streams.always, alternate: bool = False
    ) -> None:
        """A job of ``slots`` vectors of ``blocks`` blocks, for the router twice as many; vector by vector, or they
        ``alternate``."""
        self.placed[half] = {}
        before = self.loaded
        count = blocks * (1 + router)
        order = []
        for slot, token in enumerate(random.sample(range(self.arch.max_tokens), slots)):
            exponents = [random.randint(-2048, 2047) for _ in range(blocks)] * (1 + router)
            lines = [
                {
                    "mantissas": [random.randrange(256) for _ in range(ROWS)], "exponent": exponents[number],
                    "half": half, "slot": slot, "place": slot * count + number, "token": token, "input": int(router),
                    "start": int(number == 0), "counts": int(number < blocks), "last": 0,
                }
                for number in range(count)
            ]  # fmt: skip
            order += lines
            self.placed[half][slot, slot * count] = lines
            if router:
                self.tokens[token] = max(exponents)
        if alternate:
            order.sort(key=lambda line: line["place"] % count)
        order[-1]["last"] = 1
        active = pattern()
        for line in order:
            while not next(active):
                # What is there without ``valid`` does not count.
                self.dut.line.value = random.getrandbits(len(self.dut.line))
                await RisingEdge(self.dut.clk)
            assert self.loaded == before
            self.dut.valid.value, self.dut.line.value = 1, streams.pack(line_layout(self.arch), line)
            await RisingEdge(self.dut.clk)
            self.dut.valid.value = 0
        await ClockCycles(self.dut.clk, 2)
        assert self.loaded == before + 1

    async def check(self) -> None:
        for half, vectors in enumerate(self.placed):
            for (slot, first), lines in vectors.items():
                for place, line in enumerate(lines, half * self.arch.vector_blocks // 2 + first):
                    assert self.bank[place] == sum(value << 8 * row for row, value in enumerate(line["mantissas"]))
                    token = random.choice(list(self.tokens) or [0])
                    got = await self._exponents(place, half, slot, token)
                    largest = max(line["exponent"] for line in lines)
                    assert got[:2] == (line["exponent"], largest)
                    assert got[2] == self.tokens.get(token, got[2])

    async def _exponents(self, address: int, half: int, slot: int, token: int) -> tuple[int, int, int]:
        dut = self.dut
        dut.read__address.value, dut.read__half.value = address, half
        dut.read__slot.value, dut.read__token.value = slot, token
        await RisingEdge(dut.clk)
        await ReadOnly()
        names = ("block_exponent", "vector_exponent", "token_exponent")
        values = tuple(getattr(dut, f"read__{name}").value.to_signed() for name in names)
        await RisingEdge(dut.clk)
        return values


def largest(arch: Arch) -> tuple[int, int, bool]:
    """A job that fills its half."""
    return arch.slots, arch.vector_blocks // 2 // arch.slots, False


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS))
async def jobs_in_a_row(dut, idle):
    bench = Bench(dut)
    await bench.start()
    slots = bench.arch.slots
    shapes = [(1, 1, True), (slots, 1, False), (max(1, slots - 1), 5, True), (1, 7, False), largest(bench.arch)]
    half = random.randrange(2)
    for shape in (*shapes, *random.sample(shapes, 3)):
        await bench.load(half, *shape, streams.PATTERNS[idle], alternate=random.random() < 0.5)
        await bench.check()
        half ^= 1


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def reset_in_flight(dut):
    bench = Bench(dut)
    await bench.start()
    shape = largest(bench.arch)
    for _ in range(12):
        working = cocotb.start_soon(bench.load(0, *shape))
        await ClockCycles(dut.clk, random.randint(1, shape[0] * shape[1] - 1))
        await streams.interrupt(dut, working, "valid")
        bench.placed, bench.tokens = [{}, {}], {}
        await bench.load(random.randrange(2), 1, 3, True)
        await bench.check()


@pytest.mark.parametrize("name", list(SIZES))
def test_vector_buffer(name: str) -> None:
    run_bench(VectorBuffer(SIZES[name]), __name__, sizes=name)
