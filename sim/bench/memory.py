"""Memory for blocks that read through ``bursts`` and ``words`` streams or a port, or write AXI4 bursts."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from moe_hw.arch import SEGMENT_ALIGN, Arch
from rtl_gen.bus import burst_layout, range_layout, word_layout
from sim.bench import streams


async def serve_reads(
    dut: Any,
    arch: Arch,
    memory: bytes,
    pattern: streams.Pattern = streams.always,
    errors: set[int] | None = None,
) -> None:
    """Answer ``dut.bursts`` on ``dut.words`` from ``memory``, forever.

    Parameters:
        pattern: pauses of both streams.
        errors: byte addresses of bus words that are answered with an error.

    Raises:
        AssertionError: a burst crosses a multiple of ``arch.burst_bytes`` or leaves the memory.
    """
    word_bytes = arch.data_bits // 8
    queue: deque[int] = deque()

    async def requests() -> None:
        while True:
            (burst,) = await streams.receive(dut, "bursts", burst_layout(arch), 1, pattern)
            first, last = burst["address"], burst["address"] + burst["length"] * word_bytes
            assert first % word_bytes == 0 and last + word_bytes <= len(memory), f"burst {burst} outside the memory"
            assert first // arch.burst_bytes == last // arch.burst_bytes, f"burst {burst} crosses a boundary"
            queue.extend(range(first, last + 1, word_bytes))

    task = cocotb.start_soon(requests())
    try:
        while True:
            if task.done():
                task.result()
            if not queue:
                await RisingEdge(dut.clk)
                continue
            address = queue.popleft()
            word = int.from_bytes(memory[address : address + word_bytes], "little")
            value = {"data": word, "error": int(address in (errors or ()))}
            await streams.send(dut, "words", word_layout(arch), [value], pattern)
    finally:
        task.cancel()


async def serve_ranges(
    dut: Any,
    arch: Arch,
    memory: bytes,
    pattern: streams.Pattern = streams.always,
    errors: set[int] | None = None,
) -> None:
    """Answer ``dut.ranges`` on ``dut.words`` from ``memory``, forever; otherwise as :func:`serve_reads`."""
    word_bytes = arch.data_bits // 8
    while True:
        (wanted,) = await streams.receive(dut, "ranges", range_layout(arch), 1, pattern)
        first = wanted["address"] * SEGMENT_ALIGN
        addresses = range(first, first + wanted["words"] * word_bytes, word_bytes)
        assert addresses.stop <= len(memory), f"range {wanted} outside the memory"
        values = [
            {
                "data": int.from_bytes(memory[address : address + word_bytes], "little"),
                "error": int(address in (errors or ())),
            }
            for address in addresses
        ]
        await streams.send(dut, "words", word_layout(arch), values, pattern)


async def serve_writes(dut: Any, arch: Arch, memory: bytearray, pattern: streams.Pattern = streams.always,
                       response: int = 0) -> None:
    """Take AXI4 write bursts of a block without prefix (``dut.awaddr`` …) into ``memory``, forever."""
    word_bytes = arch.data_bits // 8
    bursts: deque[tuple[int, int]] = deque()
    answers: deque[int] = deque()
    offset = 0
    active = pattern()
    dut.bid.value = 0
    while True:
        dut.awready.value, dut.wready.value = int(next(active)), int(next(active))
        answer = bool(answers) and random.random() < 0.5
        dut.bvalid.value, dut.bresp.value = int(answer), response
        await ReadOnly()
        if int(dut.awvalid.value) and int(dut.awready.value):
            address, length = int(dut.awaddr.value), int(dut.awlen.value)
            assert address // arch.burst_bytes == (address + length * word_bytes) // arch.burst_bytes
            bursts.append((address, length))
        if int(dut.wvalid.value) and int(dut.wready.value) and bursts:
            address, length = bursts[0]
            data = int(dut.wdata.value).to_bytes(word_bytes, "little")
            strobe = int(dut.wstrb.value)
            for lane in range(word_bytes):
                if strobe >> lane & 1:
                    memory[address + offset * word_bytes + lane] = data[lane]
            assert int(dut.wlast.value) == int(offset == length)
            offset += 1
            if offset > length:
                bursts.popleft()
                offset = 0
                answers.append(0)
        elif int(dut.wvalid.value) and int(dut.wready.value):
            raise AssertionError("data before their address: this memory takes them in order")
        if answer and int(dut.bready.value):
            answers.popleft()
        await RisingEdge(dut.clk)


async def serve_corrections(dut: Any, table: Sequence[int]) -> None:
    """The read port of a correction table: ``correction`` follows ``expert`` by a cycle, and is anything beyond it."""
    while True:
        await ReadOnly()
        expert = int(dut.expert.value) if dut.expert.value.is_resolvable else 0
        await RisingEdge(dut.clk)
        dut.correction.value = table[expert] if expert < len(table) else random.getrandbits(31)
