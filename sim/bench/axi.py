"""AXI for benches: cocotbext-axi behind two helpers, with the pause patterns of ``sim.bench.streams``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from moe_hw.registers import csr_address
from rtl_gen.bus import INCR
from sim.bench import streams


def memory(dut: Any, size: int, pattern: streams.Pattern = streams.always) -> AxiRam:
    """A memory of ``size`` bytes at ``dut.m_axi``, every channel of which pauses in its own ``pattern``."""
    ram = AxiRam(AxiBus.from_prefix(dut, "m_axi_"), dut.clk, dut.rst, size=size)
    pause(ram, pattern)
    return ram


def pause(model: Any, pattern: streams.Pattern) -> None:
    """Let every channel of a master or a memory of cocotbext-axi pause in its own ``pattern``."""
    channels = [getattr(model.write_if, f"{name}_channel") for name in ("aw", "w", "b")]
    channels += [getattr(model.read_if, f"{name}_channel") for name in ("ar", "r")]
    for channel in channels:
        channel.set_pause_generator(not active for active in pattern())


class Csrs:
    """CSR accesses by name at the AXI4-Lite port ``prefix``."""

    def __init__(self, dut: Any, prefix: str = "s_axil_", pattern: streams.Pattern = streams.always):
        self.master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, prefix), dut.clk, dut.rst)
        pause(self.master, pattern)

    async def read(self, name: str) -> int:
        return await self.master.read_dword(csr_address(name))

    async def write(self, name: str, value: int) -> None:
        await self.master.write_dword(csr_address(name), value)


@dataclass
class Burst:
    """A burst of 32-bit words.

    Attributes:
        address: of the first byte.
        words: what is written; for a read as many as are wanted, of any value.
        strobes: which bytes of each word are written.
        size, burst: what the master says of itself.
    """

    address: int
    words: Sequence[int]
    strobes: Sequence[int] = ()
    size: int = 2
    burst: int = INCR

    @property
    def request(self) -> dict[str, int]:
        return {"addr": self.address, "len": len(self.words) - 1, "size": self.size, "burst": self.burst, "id": 0}


class Master:
    """An AXI4 master at the port ``prefix`` of ``dut`` that sends exactly the bursts that it is told, in order."""

    def __init__(self, dut: Any, prefix: str):
        self.dut = dut
        self.prefix = prefix
        self.idle()

    def idle(self) -> None:
        """Offer and take nothing."""
        for name in ("arvalid", "rready", "awvalid", "wvalid", "bready"):
            self._signal(name).value = 0

    async def read(
        self, bursts: Sequence[Burst], idle: streams.Pattern = streams.always, stall: streams.Pattern = streams.always
    ) -> list[list[tuple[int, int]]]:
        """Data and response of each word of each burst."""
        asking = cocotb.start_soon(self._send("ar", (burst.request for burst in bursts), idle))
        try:
            words = self._receive("r", ("data", "resp", "last"), sum(len(burst.words) for burst in bursts), stall)
            got = iter(await words)
            answers = [[next(got) for _ in burst.words] for burst in bursts]
        finally:
            asking.cancel()
        for answer in answers:
            assert [last for *_, last in answer] == [0] * (len(answer) - 1) + [1], "rlast is not on the last word"
        return [[(data, response) for data, response, _ in answer] for answer in answers]

    async def write(
        self, bursts: Sequence[Burst], idle: streams.Pattern = streams.always, stall: streams.Pattern = streams.always
    ) -> list[int]:
        """The response to each burst."""
        words = (
            {"data": word, "strb": strobe, "last": int(number == len(burst.words))}
            for burst in bursts
            for number, (word, strobe) in enumerate(zip(burst.words, burst.strobes, strict=True), start=1)
        )
        sending = [
            cocotb.start_soon(self._send("aw", (burst.request for burst in bursts), idle)),
            cocotb.start_soon(self._send("w", words, idle)),
        ]
        try:
            answers = await self._receive("b", ("resp",), len(bursts), stall)
        finally:
            for task in sending:
                task.cancel()
        return [response for (response,) in answers]

    def _signal(self, name: str) -> Any:
        return getattr(self.dut, f"{self.prefix}{name}")

    async def _send(self, channel: str, values: Iterator[dict[str, int]], pattern: streams.Pattern) -> None:
        valid, ready = self._signal(f"{channel}valid"), self._signal(f"{channel}ready")
        active = pattern()
        for value in values:
            while not next(active):
                await RisingEdge(self.dut.clk)
            for name, field in value.items():
                self._signal(f"{channel}{name}").value = field
            valid.value = 1
            taken = False
            while not taken:
                await ReadOnly()
                taken = bool(int(ready.value))
                await RisingEdge(self.dut.clk)
            valid.value = 0

    async def _receive(
        self, channel: str, names: Sequence[str], count: int, pattern: streams.Pattern
    ) -> list[tuple[int, ...]]:
        valid, ready = self._signal(f"{channel}valid"), self._signal(f"{channel}ready")
        fields = [self._signal(f"{channel}{name}") for name in names]
        active = pattern()
        out: list[tuple[int, ...]] = []
        while len(out) < count:
            enable = next(active)
            ready.value = int(enable)
            await ReadOnly()
            if enable and int(valid.value):
                out.append(tuple(int(field.value) for field in fields))
            await RisingEdge(self.dut.clk)
        ready.value = 0
        return out


async def cycles_of(dut: Any, work: Any) -> int:
    """Fabric cycles until ``work`` is done."""
    count = 0
    task = cocotb.start_soon(work)
    while not task.done():
        await RisingEdge(dut.clk)
        count += 1
    task.result()
    return count
