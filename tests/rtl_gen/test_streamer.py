"""The streamer: every beat reaches its bank in order, none is overwritten before the array has read it."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, ReadWrite, RisingEdge

from moe_hw.arch import SEGMENT_ALIGN, TILES_PER_SCALE_BEAT, Arch
from rtl_gen.streamer import RELEASE_DELAY, Streamer
from rtl_gen.types import segment_layout
from sim.bench import streams
from sim.bench.memory import serve_reads
from sim.bench.runner import parameter, run_bench

BASE = 3


def sizes(columns: int, data_bits: int) -> Arch:
    return Arch(columns=columns, data_bits=data_bits, expert_beats=64, burst_bytes=256)


def lay_out(arch: Arch, shapes: list[tuple[int, int, int]]) -> tuple[bytes, list[dict], list[int], list[int]]:
    """Memory with random segments of (groups, blocks, bits); the segments, plane beats and scale beats."""
    memory = bytearray(random.randbytes(BASE * SEGMENT_ALIGN))
    segments, planes, scales = [], [], []
    for groups, blocks, bits in shapes:
        memory += random.randbytes(-len(memory) % SEGMENT_ALIGN + random.randrange(4) * SEGMENT_ALIGN)
        address = len(memory) // SEGMENT_ALIGN - BASE
        segments.append({"address": address, "groups": groups, "blocks": blocks, "bits": bits})
        tiles = groups * blocks
        for first in range(0, tiles, TILES_PER_SCALE_BEAT):
            count = min(TILES_PER_SCALE_BEAT, tiles - first) * bits
            beats = [random.getrandbits(arch.beat_bits) for _ in range(count + 1)]
            scales.append(beats[0])
            planes.extend(beats[1:])
            memory += b"".join(beat.to_bytes(arch.beat_bytes, "little") for beat in beats)
    return bytes(memory) + bytes(arch.burst_bytes), segments, planes, scales


async def stream(dut, arch: Arch, shapes: list[tuple[int, int, int]], idle: streams.Pattern, stall: streams.Pattern,
                 fault: bool = False) -> None:
    """Stream segments of ``shapes`` and check every beat; with ``fault``, a word of the first is read with an error."""
    memory, segments, planes, scales = lay_out(arch, shapes)
    errors = {(BASE + segments[0]["address"]) * SEGMENT_ALIGN + arch.data_bits // 8} if fault else set()
    memory_task = cocotb.start_soon(serve_reads(dut, arch, memory, idle, errors))
    sending = cocotb.start_soon(streams.send(dut, "segments", segment_layout(arch), segments))
    scale_task = cocotb.start_soon(streams.receive(dut, "scales", arch.beat_bits, len(scales), stall))
    try:
        await take_planes(dut, arch, planes, stall)
        assert await scale_task == scales
        assert int(dut.error.value) == fault
    finally:
        for task in (memory_task, sending, scale_task):
            task.cancel()


async def begin(dut) -> Arch:
    dut.base.value, dut.clear.value, dut.beat_pop.value = BASE, 0, 0
    await streams.start(dut)
    return sizes(int(parameter("columns")), int(parameter("data_bits")))


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def segments_arrive(dut, idle, stall):
    """Segments of all shapes, memory and array pausing at random."""
    arch = await begin(dut)
    shapes = [(1, 1, 2), (1, 1, 16), (3, 1, 4), (2, 3, 8), (5, 7, 3), (1, 4, 5), (2, 2, 6)]
    random.shuffle(shapes)
    await stream(dut, arch, shapes, streams.PATTERNS[idle], streams.PATTERNS[stall])


async def take_planes(dut, arch: Arch, expected: list[int], pattern: streams.Pattern) -> None:
    """Pops beats like the sequencer; checks what is written where, and that no beat is overwritten too early."""
    bank: dict[int, int] = {}
    popped_at: dict[int, int] = {}
    written = popped = cycle = 0
    active = pattern()
    while popped < len(expected):
        await ReadWrite()  # the array takes a beat in the cycle in which it is ready
        pop = int(dut.beat_ready.value) and next(active)
        dut.beat_pop.value = int(pop)
        await ReadOnly()
        if int(dut.plane_write.value):
            address = int(dut.plane_address.value)
            assert address == written % arch.expert_beats
            if written >= arch.expert_beats:
                assert written - popped <= arch.expert_beats, "a beat that waits was overwritten"
                assert cycle - popped_at[written - arch.expert_beats] >= RELEASE_DELAY
            bank[address] = int(dut.beat.value)
            written += 1
        if pop:
            assert bank[popped % arch.expert_beats] == expected[popped], f"beat {popped}"
            popped_at[popped] = cycle
            popped += 1
        await RisingEdge(dut.clk)
        cycle += 1
    dut.beat_pop.value = 0


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def the_bus_is_free_while_the_array_waits(dut):
    """With no beat popped and no scales taken, words of all that was asked for are taken."""
    arch = await begin(dut)
    memory, segments, _, _ = lay_out(arch, [(1, 1, 2)] * 3 + [(1, arch.expert_beats, 2)] * 3)
    memory_task = cocotb.start_soon(serve_reads(dut, arch, memory))
    dut.scales__ready.value = 0
    sending = cocotb.start_soon(streams.send(dut, "segments", segment_layout(arch), segments))
    await ClockCycles(dut.clk, 8 * arch.expert_beats * arch.words_per_beat)
    for _ in range(100):
        await RisingEdge(dut.clk)
        assert not int(dut.waiting.value)
    assert not sending.done()
    memory_task.cancel(), sending.cancel()


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def a_memory_error_is_reported_and_does_not_stop_the_stream(dut):
    arch = await begin(dut)
    await stream(dut, arch, [(2, 2, 4)], streams.always, streams.always, fault=True)
    dut.clear.value = 1
    await RisingEdge(dut.clk)
    dut.clear.value = 0
    await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    assert int(dut.error.value) == 0


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def reset_in_flight(dut):
    """With words outstanding, beats and scales waiting, and an error; the memory is reset, too."""
    arch = await begin(dut)
    for number in range(8):
        shapes = [(1, 1, 16), (5, 7, 4), (2, 3, 5)]
        working = cocotb.start_soon(
            stream(dut, arch, shapes, streams.always, streams.PATTERNS["sometimes"], fault=number % 2 == 1)
        )
        await ClockCycles(dut.clk, random.randint(1, 300))
        await streams.interrupt(
            dut, working, "segments__valid", "words__valid", "bursts__ready", "scales__ready", "beat_pop"
        )
        assert int(dut.waiting.value) == int(dut.error.value) == 0
        await stream(dut, arch, [(3, 1, 2), (2, 2, 8)], streams.always, streams.always)
        await streams.reset(dut)  # the beats of what is interrupted start at address 0 again


@pytest.mark.parametrize(("columns", "data_bits"), [(4, 32), (8, 256), (64, 512)])
def test_streamer(columns: int, data_bits: int) -> None:
    run_bench(Streamer(sizes(columns, data_bits)), __name__, columns=columns, data_bits=data_bits)
