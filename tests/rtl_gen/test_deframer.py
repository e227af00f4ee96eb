"""Frames of a disturbed line: those that ``moe_hw.bridge.Decoder`` finds."""

import random

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.bridge import CRC_BYTES, Decoder, encode
from rtl_gen.deframer import Deframer
from sim.bench import streams
from sim.bench.runner import run_bench
from sim.serial import LineFaults
from tests.rtl_gen.test_framer import contents


async def drive(dut, line: bytes, idle: streams.Pattern) -> None:
    active = idle()
    for byte in line:
        while not next(active):
            dut.valid.value = 0
            dut.data.value = random.randrange(256)
            await RisingEdge(dut.clk)
        dut.valid.value, dut.data.value = 1, byte
        await RisingEdge(dut.clk)
    dut.valid.value = 0


async def frames(dut, found: list[bytes | None]) -> None:
    """What the outputs say, in the form of ``Decoder``; each a cycle behind its input."""
    body = bytearray()
    valid_before = False
    while True:
        await ReadOnly()
        assert valid_before or not (int(dut.end.value) or int(dut.o_valid.value))
        valid_before = bool(int(dut.valid.value))
        ended, valid = int(dut.end.value), int(dut.o_valid.value)
        assert not (ended and valid)
        if valid:
            body.append(int(dut.o_data.value))
        if ended:
            found.append(bytes(body[:-CRC_BYTES]) if int(dut.good.value) else None)
            body.clear()
        await RisingEdge(dut.clk)


async def check(dut, line: bytes, idle: streams.Pattern) -> list[bytes | None]:
    found: list[bytes | None] = []
    watching = cocotb.start_soon(frames(dut, found))
    try:
        await drive(dut, line, idle)
        await ClockCycles(dut.clk, 3)
        assert found == list(Decoder().feed(line))
    finally:
        watching.cancel()
    return found


async def begin(dut) -> None:
    dut.valid.value = 0
    await streams.start(dut)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS))
async def whole_frames(dut, idle):
    await begin(dut)
    expected = contents(20)
    line = b"".join(random.choice((b"", b"\x7e\x7e")) + encode(content) for content in expected) + b"\x7e"
    assert await check(dut, line, streams.PATTERNS[idle]) == expected


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def every_fault(dut):
    """Bytes lost, repeated, changed and added, with lines that end anywhere."""
    await begin(dut)
    bad = good = 0
    for rate in (0.01, 0.05, 0.3):
        faults = LineFaults(random.getrandbits(32), rate)
        line = faults(b"".join(map(encode, contents(150)))) + b"\x7e"
        found = await check(dut, line, streams.always)
        bad += found.count(None)
        good += len(found) - found.count(None)
    assert bad > 50 and good > 50


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def an_escape_of_the_end_spoils_the_frame(dut):
    await begin(dut)
    content = contents(1)[0]
    line = encode(content)[:-1]
    line += b"\x7d\x7e" + line + b"\x7e\x7e\x7d\x7e"
    assert await check(dut, line, streams.always) == [None, content, None]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut):
    await begin(dut)
    for _ in range(10):
        working = cocotb.start_soon(drive(dut, b"".join(map(encode, contents(5))), streams.always))
        await ClockCycles(dut.clk, random.randint(1, 80))
        await streams.interrupt(dut, working, "valid")
        await check(dut, b"".join(map(encode, contents(3))), streams.always)


def test_deframer() -> None:
    run_bench(Deframer(), __name__)
