"""Frames in datagrams: each in one of its own, to whoever sent last; and the bytes of what comes in."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge
from cocotb.utils import get_sim_time

from moe_hw.bridge import FLAG, WORD_BYTES, Decoder, encode, whole_words
from rtl_gen.datagrams import RECEIVED_WORDS, Datagrams
from sim.bench import streams
from sim.bench.runner import run_bench
from tests.rtl_gen.test_framer import contents

INPUTS = ("udp__received_valid", "udp__sent_ready", "received__ready", "sent__valid")
HOST = (0xC0A80133, 5000)


async def begin(dut: Any) -> None:
    for name in INPUTS:
        getattr(dut, name).value = 0
    await streams.start(dut)


async def deliver(dut: Any, data: bytes, host: tuple[int, int] = HOST, idle: streams.Pattern = streams.always) -> None:
    """The words of a datagram from ``host`` come in."""
    active = idle()
    for at in range(0, len(data), WORD_BYTES):
        while not next(active):
            await RisingEdge(dut.clk)
        dut.udp__received_valid.value = 1
        dut.udp__received_data.value = int.from_bytes(data[at : at + WORD_BYTES], "little")
        dut.udp__received_address.value, dut.udp__received_port.value = host
        await RisingEdge(dut.clk)
        dut.udp__received_valid.value = 0


async def take(dut: Any, count: int, stall: streams.Pattern) -> list[tuple[tuple[int, int], bytes]]:
    """The next datagrams: to whom, and their bytes."""
    active = stall()
    found: list[tuple[tuple[int, int], bytes]] = []
    data, whole = b"", None
    while len(found) < count:
        ready = next(active)
        dut.udp__sent_ready.value = int(ready)
        await ReadOnly()
        if ready and int(dut.udp__sent_valid.value):
            said = tuple(int(getattr(dut, f"udp__sent_{name}").value) for name in ("address", "port", "length"))
            assert whole in (None, said)
            whole = said
            data += int(dut.udp__sent_data.value).to_bytes(WORD_BYTES, "little")
            if int(dut.udp__sent_last.value):
                assert len(data) == said[2]
                found.append((said[:2], data))
                data, whole = b"", None
        await RisingEdge(dut.clk)
    dut.udp__sent_ready.value = 0
    return found


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def a_frame_is_a_datagram(dut, idle, stall):
    await begin(dut)
    for host in (HOST, (random.getrandbits(32), random.getrandbits(16))):
        await deliver(dut, bytes(4), host)
        frames = [encode(content) for content in contents(20)]
        offering = cocotb.start_soon(
            streams.send(dut, "sent", 8, b"".join(frames), streams.PATTERNS[idle])
        )
        found = await take(dut, len(frames), streams.PATTERNS[stall])
        assert found == [(host, whole_words(frame)) for frame in frames]
        await offering
    await ClockCycles(dut.clk, 20)
    assert not int(dut.udp__sent_valid.value)


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def bytes_of_what_comes_in(dut, idle, stall):
    await begin(dut)
    data = random.randbytes(4 * 300)
    delivering = cocotb.start_soon(deliver(dut, data, HOST, streams.PATTERNS[idle]))
    assert bytes(await streams.receive(dut, "received", 8, len(data), streams.PATTERNS[stall])) == data
    await delivering


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def what_finds_no_room_is_lost(dut):
    """And nothing else: a word may wait in the queue's output."""
    await begin(dut)
    data = random.randbytes(WORD_BYTES * (RECEIVED_WORDS + 50))
    await deliver(dut, data)
    size = WORD_BYTES * RECEIVED_WORDS
    assert bytes(await streams.receive(dut, "received", 8, size)) == data[:size]
    dut.received__ready.value = 1
    await ClockCycles(dut.clk, 200)
    dut.received__ready.value = 0
    await deliver(dut, b"next")
    assert bytes(await streams.receive(dut, "received", 8, 4)) == b"next"


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def pieces_of_frames_hold_nothing_up(dut):
    """Each frame that ends is on its way, whatever was before it."""
    await begin(dut)
    for _ in range(20):
        content = random.randbytes(random.randint(1, 40))
        line = bytes(random.randrange(FLAG) for _ in range(random.randint(1, 9))) + encode(content)
        offering = cocotb.start_soon(streams.send(dut, "sent", 8, line))
        found = b"".join(data for _, data in await take(dut, 2, streams.always))
        assert found == whole_words(line[: line.index(FLAG) + 1]) + whole_words(line[line.index(FLAG) + 1 :])
        assert content in list(Decoder().feed(found))
        await offering


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def latency_and_throughput(dut):
    await begin(dut)
    cocotb.start_soon(deliver(dut, random.randbytes(400)))
    await RisingEdge(dut.udp__received_valid)
    began = get_sim_time("ns")
    await RisingEdge(dut.received__valid)
    assert (get_sim_time("ns") - began) / 10 == 2
    began = get_sim_time("ns")
    await streams.receive(dut, "received", 8, 400)
    assert (get_sim_time("ns") - began) / 10 <= 401
    frame = encode(bytes(10))
    began = get_sim_time("ns")
    await streams.send(dut, "sent", 8, frame)
    assert (get_sim_time("ns") - began) / 10 <= len(frame) + 1
    cycles = 0
    while not int(dut.udp__sent_valid.value):
        await RisingEdge(dut.clk)
        cycles += 1
    assert cycles <= 3 + len(whole_words(frame)) - len(frame)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def reset_in_flight(dut):
    await begin(dut)
    for _ in range(10):

        async def work() -> None:
            for _ in range(20):
                await deliver(dut, random.randbytes(40))
                await streams.send(dut, "sent", 8, encode(random.randbytes(20)))

        working = cocotb.start_soon(work())
        await ClockCycles(dut.clk, random.randint(1, 300))
        await streams.interrupt(dut, working, *INPUTS)
        await deliver(dut, b"word")
        assert bytes(await streams.receive(dut, "received", 8, 4)) == b"word"
        offering = cocotb.start_soon(streams.send(dut, "sent", 8, encode(b"next")))
        assert await take(dut, 1, streams.always) == [(HOST, whole_words(encode(b"next")))]
        await offering


def test_datagrams() -> None:
    run_bench(Datagrams(), __name__)
