"""Frames on the line are those of ``moe_hw.bridge.encode``, whatever holds them up."""

import random

import cocotb
from cocotb.triggers import ClockCycles

from moe_hw.bridge import ESCAPE, FLAG, encode
from rtl_gen.framer import CONTENT, Framer
from sim.bench import streams
from sim.bench.runner import run_bench


def contents(count: int) -> list[bytes]:
    """Random ones, and such of nothing but flags and escapes; also one byte."""
    special = bytes((FLAG, ESCAPE, 0x5E, 0x5D))
    return [
        random.choice((random.randbytes, lambda size: bytes(random.choices(special, k=size))))(random.randint(1, 30))
        for _ in range(count)
    ]


def as_stream(content: bytes) -> list[dict[str, int]]:
    return [{"byte": byte, "last": int(at == len(content))} for at, byte in enumerate(content, 1)]


async def check(dut, frames: list[bytes], idle: streams.Pattern, stall: streams.Pattern) -> None:
    values = [value for content in frames for value in as_stream(content)]
    offering = cocotb.start_soon(streams.send(dut, "content", CONTENT, values, idle))
    try:
        expected = b"".join(map(encode, frames))
        assert bytes(await streams.receive(dut, "line", 8, len(expected), stall)) == expected
        await offering
    finally:
        offering.cancel()


async def begin(dut) -> None:
    dut.content__valid.value = dut.line__ready.value = 0
    await streams.start(dut)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def frames_in_a_row(dut, idle, stall):
    await begin(dut)
    await check(dut, [*contents(12), b"\x7e", b"\0"], streams.PATTERNS[idle], streams.PATTERNS[stall])
    dut.line__ready.value = 1
    for _ in range(20):
        await ClockCycles(dut.clk, 1)
        assert int(dut.line__valid.value) == 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def throughput(dut):
    """At most two cycles for a byte of the line."""
    await begin(dut)
    content = random.randbytes(100)
    cycles = cocotb.utils.get_sim_time("ns") / 10
    await check(dut, [content], streams.always, streams.always)
    assert cocotb.utils.get_sim_time("ns") / 10 - cycles <= 2 * len(encode(content)) + 2


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut):
    await begin(dut)
    for _ in range(10):
        working = cocotb.start_soon(check(dut, contents(3), streams.always, streams.PATTERNS["bursts"]))
        await ClockCycles(dut.clk, random.randint(1, 60))
        await streams.interrupt(dut, working, "content__valid", "line__ready")
        await check(dut, contents(2), streams.always, streams.always)


def test_framer() -> None:
    run_bench(Framer(), __name__)
