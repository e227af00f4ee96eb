"""The benches' memories: words that are read while they are written are lost, all others are not."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ReadWrite, RisingEdge

from sim.bench.runner import run_bench
from sim.bench.streams import start

WORDS, BITS = 4, 32


class Bank(wiring.Component):
    """A memory with two read ports, of which one is transparent."""

    def __init__(self) -> None:
        super().__init__(
            {
                "write": In(1),
                "write_address": In(range(WORDS)),
                "data": In(BITS),
                "read_address": In(range(WORDS)),
                "plain": Out(BITS),
                "transparent": Out(BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(shape=BITS, depth=WORDS, init=[])
        write = memory.write_port()
        plain, transparent = memory.read_port(), memory.read_port(transparent_for=[write])
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.write_address),
            write.data.eq(self.data),
            plain.addr.eq(self.read_address),
            transparent.addr.eq(self.read_address),
            self.plain.eq(plain.data),
            self.transparent.eq(transparent.data),
        ]
        return m


def test_collisions() -> None:
    run_bench(Bank(), __name__)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def collisions_are_unknown(dut: Any) -> None:
    await start(dut)
    words: dict[int, int] = {}
    collisions = kept = 0
    for _ in range(1000):
        write, place, address = random.randrange(2), random.randrange(WORDS), random.randrange(WORDS)
        data = random.getrandbits(BITS)
        dut.write.value, dut.write_address.value, dut.data.value = write, place, data
        dut.read_address.value = address
        await RisingEdge(dut.clk)
        await ReadWrite()
        old, collides = words.get(address), bool(write) and place == address
        if write:
            words[place] = data
        if collides:
            assert int(dut.transparent.value) == data
            if old is not None:
                collisions += 1
                kept += int(dut.plain.value) in (old, data)
        elif old is not None:
            assert int(dut.plain.value) == int(dut.transparent.value) == old
    assert collisions > 50 and kept == 0
