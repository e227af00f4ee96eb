"""The queue of frames against lists: good frames come out whole and in order, bad ones as marks, whatever is full."""

import random
from collections import deque

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.bridge import CRC_BYTES, LARGEST_COUNT, QUEUE_BYTES, WINDOW
from rtl_gen.frame_queue import LATE, LONGEST, SHORTEST, FrameQueue
from sim.bench import streams
from sim.bench.runner import run_bench

Sent = tuple[bytes, bool]
"""The bytes of a frame with its CRC, and whether it is good."""


async def put(dut, frame: Sent, idle: streams.Pattern = streams.always) -> None:
    body, good = frame
    active = idle()
    for byte in body:
        while not next(active):
            await RisingEdge(dut.clk)
        dut.valid.value, dut.data.value = 1, byte
        await RisingEdge(dut.clk)
        dut.valid.value = 0
    dut.end.value, dut.good.value = 1, int(good)
    await RisingEdge(dut.clk)
    dut.end.value = dut.good.value = 0


async def take(dut, pattern: streams.Pattern = streams.always) -> bytes | None:
    """The next frame's content; None for a bad one."""
    (length,) = await streams.receive(dut, "frames", range(LONGEST + 1), 1, pattern)
    return bytes(await streams.receive(dut, "bytes", 8, length, pattern)) if length else None


def expected(frame: Sent) -> bytes | None:
    body, good = frame
    return body[:-CRC_BYTES] if good and SHORTEST <= len(body) <= LONGEST else None


def random_frame(longest: int = 60) -> Sent:
    size = random.choice((1, SHORTEST - 1, SHORTEST, random.randint(1, longest)))
    return random.randbytes(size), random.random() < 0.7


async def begin(dut) -> None:
    for name in ("valid", "end", "good", "frames__ready", "bytes__ready"):
        getattr(dut, name).value = 0
    await streams.start(dut)


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def good_and_bad(dut, idle, stall):
    await begin(dut)
    frames = [random_frame() for _ in range(100)]
    waiting: deque[Sent] = deque()

    async def source() -> None:
        for frame in frames:
            while len(waiting) > WINDOW // 2:
                await RisingEdge(dut.clk)
            await put(dut, frame, streams.PATTERNS[idle])
            waiting.append(frame)

    task = cocotb.start_soon(source())
    for frame in frames:
        assert await take(dut, streams.PATTERNS[stall]) == expected(frame)
        waiting.popleft()
    await task


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def sizes_at_the_limits(dut):
    await begin(dut)
    for size in (1, CRC_BYTES, SHORTEST - 1, SHORTEST, LONGEST - 1, LONGEST, LONGEST + 1, 1500, QUEUE_BYTES, 5000):
        frame = (random.randbytes(size), True)
        await put(dut, frame)
        assert await take(dut) == expected(frame), size


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def full_of_bytes_or_of_frames(dut):
    """What does not fit is bad or lost, and what was there is not touched."""
    await begin(dut)
    for size in (SHORTEST, 100, 200, LONGEST):
        for _ in range(3):
            frames = [(random.randbytes(size), True) for _ in range(WINDOW + 4)]
            for frame in frames:
                await put(dut, frame)
            await ClockCycles(dut.clk, 4)
            found = []
            while int(dut.frames__valid.value):
                found.append(await take(dut))
                await ClockCycles(dut.clk, 3)
            fitting = min(WINDOW, (QUEUE_BYTES - 1 - CRC_BYTES) // (size - CRC_BYTES))
            assert len(found) in (WINDOW, WINDOW + 1)  # one may wait in the queue's output
            assert found[:fitting] == [expected(frame) for frame in frames[:fitting]]
            assert all(frame is None for frame in found[fitting + 1 :]) or size <= 100
    assert LARGEST_COUNT * 3 < QUEUE_BYTES


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(stall=list(streams.PATTERNS))
async def a_sender_that_waits_for_room_loses_nothing(dut, stall):
    """It sees ``room`` late, and stops in the middle of a frame."""
    await begin(dut)
    frames = [
        (random.randbytes(random.choice((SHORTEST, random.randint(SHORTEST, LONGEST), LONGEST))), True)
        for _ in range(60)
    ]
    seen = deque([1] * (LATE - 1), LATE - 1)

    async def step() -> None:
        await ReadOnly()
        seen.append(int(dut.room.value))
        await RisingEdge(dut.clk)

    async def source() -> None:
        await ClockCycles(dut.clk, 2)
        for body, _ in frames:
            for byte in body:
                while not seen[0]:
                    await step()
                dut.valid.value, dut.data.value = 1, byte
                await step()
                dut.valid.value = 0
            while not seen[0]:
                await step()
            dut.end.value = dut.good.value = 1
            await step()
            dut.end.value = dut.good.value = 0

    task = cocotb.start_soon(source())
    for frame in frames:
        assert await take(dut, streams.PATTERNS[stall]) == expected(frame)
    await task


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def latency_and_throughput(dut):
    """Two cycles from the end to the first byte, then a byte a cycle."""
    await begin(dut)
    frame = (random.randbytes(LONGEST), True)
    await put(dut, frame)
    cycles = 0
    while not (int(dut.frames__valid.value) and int(dut.bytes__valid.value)):
        await RisingEdge(dut.clk)
        cycles += 1
    assert cycles == 2
    start = cocotb.utils.get_sim_time("ns")
    assert await take(dut) == expected(frame)
    assert (cocotb.utils.get_sim_time("ns") - start) / 10 <= LONGEST - CRC_BYTES + 2


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def reset_in_flight(dut):
    await begin(dut)
    for _ in range(10):
        async def work() -> None:
            for _ in range(20):
                await put(dut, random_frame())

        working = cocotb.start_soon(work())
        await ClockCycles(dut.clk, random.randint(1, 200))
        await streams.interrupt(dut, working, "valid", "end", "good")
        assert int(dut.frames__valid.value) == int(dut.bytes__valid.value) == 0
        frame = (random.randbytes(50), True)
        await put(dut, frame)
        assert await take(dut) == expected(frame)


def test_frame_queue() -> None:
    run_bench(FrameQueue(), __name__)
