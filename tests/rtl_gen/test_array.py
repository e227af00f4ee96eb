"""The array against numpy: dot products of random tiles and vectors, loads overlapping multiplications."""

import random

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, RisingEdge

from moe_hw.arch import E2M1, ROWS, Arch
from rtl_gen.array import LATENCY, Array
from rtl_gen.row import SUM_BITS, command_layout
from sim.bench import streams
from sim.bench.runner import parameter, run_bench


def arch_of(columns: int) -> Arch:
    return Arch(columns=columns, expert_beats=512, vector_blocks=512, data_bits=32)  # in block RAM


def arch() -> Arch:
    return arch_of(int(parameter("columns")))


def plane_beats(codes: np.ndarray, planes: int) -> list[int]:
    """Beats of a tile, most significant plane first; ``codes`` is [rows, columns]."""
    beats = []
    for plane in reversed(range(planes)):
        bits = (codes.reshape(-1) >> plane) & 1
        beats.append(int(sum(int(bit) << position for position, bit in enumerate(bits))))
    return beats


async def write_planes(dut, address: int, beats: list[int]) -> None:
    for offset, beat in enumerate(beats):
        dut.plane_write.value, dut.plane_address.value, dut.beat.value = 1, address + offset, beat
        await RisingEdge(dut.clk)
    dut.plane_write.value = 0


async def write_blocks(dut, blocks: np.ndarray) -> None:
    for address, block in enumerate(blocks):
        dut.x_write.value, dut.x_address.value = 1, address
        dut.x.value = int.from_bytes(block.astype(np.int8).tobytes(), "little")
        await RisingEdge(dut.clk)
    dut.x_write.value = 0


MOST_PLANES = 5
"""Of a pass."""

UNSIGNED = -4
"""Stands for the width of an unsigned slice."""

ELEMENT = 0
"""Stands for the width of E2M1 elements."""

IDLE = dict.fromkeys(("load", "load_first", "load_signed", "plane_address", "decode", "swap", "x_address"), 0)


def random_tile(rng: np.random.Generator, width: int, shape: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """Codes, and their planes."""
    if width == ELEMENT:
        numbers = rng.integers(0, 16, shape)
        return np.array(E2M1)[numbers & 7] * np.where(numbers & 8, -1, 1), plane_beats(numbers, 4)
    limits = (0, 16) if width < 0 else (1 - (1 << width - 1), 1 << width - 1)
    codes = rng.integers(*limits, shape)
    return codes, plane_beats(codes, abs(width))


def schedule(vectors: int, widths: list[int]) -> tuple[list[dict[str, int]], dict[int, tuple[int, int]]]:
    """Commands without a bubble: the loads of each tile share the commands of the vectors of the tile before.

    Returns the commands, and the (vector, tile) that each of those with sums multiplies, by the command's number.
    """
    commands = [dict(IDLE) for _ in range(MOST_PLANES)]
    products = {}
    begin = 0  # the first load of the tile
    for tile, width in enumerate(widths):
        for plane in range(abs(width or 4)):
            address = tile * MOST_PLANES + plane
            commands[begin + plane].update(
                load=1, load_first=int(plane == 0), load_signed=int(width >= 0), plane_address=address
            )
        begin = len(commands)
        for number in range(max(vectors, MOST_PLANES)):
            vector = min(number, vectors - 1)
            products[len(commands)] = vector, tile
            first = int(number == 0)
            commands.append({**IDLE, "swap": first, "decode": first & (width == ELEMENT), "x_address": vector})
    return commands, products


async def multiply(dut, sizes: Arch, vectors: int, idle: streams.Pattern) -> None:
    """Multiply blocks by eight tiles, commands pausing as ``idle`` says, and check all sums."""
    tiles = 8
    rng = np.random.default_rng(random.randrange(1 << 32))
    widths = [random.choice([2, 3, 4, 5, UNSIGNED, UNSIGNED, ELEMENT]) for _ in range(tiles)]
    codes, beats = zip(*(random_tile(rng, width, (ROWS, sizes.columns)) for width in widths), strict=True)
    blocks = rng.integers(-128, 128, (vectors, ROWS))
    blocks[0] = -128
    for tile in range(tiles):
        await write_planes(dut, tile * MOST_PLANES, beats[tile])
    await write_blocks(dut, blocks)

    commands, products = schedule(vectors, widths)
    active = idle()
    issued: list[dict[str, int]] = []
    expected = {}
    for number, command in enumerate(commands):
        while not next(active):
            issued.append(IDLE)
        if number in products:
            vector, tile = products[number]
            expected[len(issued)] = list(blocks[vector] @ codes[tile])
        issued.append(command)
    for cycle, command in enumerate(issued + [IDLE] * (LATENCY + 1)):
        dut.command.value = streams.pack(command_layout(sizes), command)
        await RisingEdge(dut.clk)
        if (issue := cycle - LATENCY) in expected:
            value = int(dut.sums.value)
            sums = [streams.unpack_signed(value >> SUM_BITS * column, SUM_BITS) for column in range(sizes.columns)]
            assert sums == expected[issue], f"cycle {issue}"


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(vectors=[1, 3, 4, 9], idle=list(streams.PATTERNS))
async def tiles_follow_each_other(dut, vectors, idle):
    """Tile after tile, without a bubble if nothing pauses, ``vectors`` blocks multiplied by each."""
    await streams.start(dut)
    await multiply(dut, arch(), vectors, streams.PATTERNS[idle])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut):
    """While planes and blocks are written, and while they are multiplied."""
    await streams.start(dut)
    for _ in range(8):
        working = cocotb.start_soon(multiply(dut, arch(), 4, streams.always))
        await ClockCycles(dut.clk, random.randint(1, 100))
        await streams.interrupt(dut, working, "plane_write", "x_write", "command")
        await multiply(dut, arch(), random.randint(1, 5), streams.always)


@pytest.mark.parametrize("columns", [4, 8])
def test_array(columns: int) -> None:
    run_bench(Array(arch_of(columns)), __name__, columns=columns)


def test_netlist() -> None:
    run_bench(Array(arch_of(4)), __name__, netlist=True, columns=4)
