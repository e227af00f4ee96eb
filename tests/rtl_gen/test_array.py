"""The array against numpy: dot products of random tiles and vectors, loads overlapping multiplications."""

import random

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge

from moe_hw.arch import PLANES_PER_PASS, ROWS, Arch
from rtl_gen.array import LATENCY, Array
from rtl_gen.row import SUM_BITS, command_layout
from sim.bench import streams
from sim.bench.runner import parameter, run_bench


def arch() -> Arch:
    return Arch(columns=int(parameter("columns")), expert_beats=64, token_blocks=64, data_bits=32)


def plane_beats(codes: np.ndarray) -> list[int]:
    """Beats of a tile, most significant plane first; ``codes`` is [rows, columns]."""
    beats = []
    for plane in reversed(range(PLANES_PER_PASS)):
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
        dut.x_write.value, dut.x_address.value = (1 << ROWS) - 1, address
        dut.x.value = int.from_bytes(block.astype(np.int8).tobytes(), "little")
        await RisingEdge(dut.clk)
    dut.x_write.value = 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(vectors=[1, 3, 4, 9])
async def tiles_follow_each_other_without_a_bubble(dut, vectors):
    """Tile after tile: the next one's planes load while ``vectors`` blocks are multiplied by this one."""
    sizes = arch()
    tiles = 8
    is_signed = [random.random() < 0.5 for _ in range(tiles)]
    codes = [np.random.default_rng(random.randrange(1 << 32)).integers(
        -8 if signed else 0, 8 if signed else 16, (ROWS, sizes.columns)) for signed in is_signed]
    codes[0][:] = -8 if is_signed[0] else 15
    blocks = np.random.default_rng(random.randrange(1 << 32)).integers(-128, 128, (vectors, ROWS))
    blocks[0] = -128

    await streams.start(dut)
    for tile in range(tiles):
        await write_planes(dut, tile * PLANES_PER_PASS, plane_beats(codes[tile]))
    await write_blocks(dut, blocks)

    # The schedule: loads of tile t + 1 share the cycles of tile t's vectors.
    commands = [dict.fromkeys(("load", "load_first", "load_signed", "plane_address", "swap", "x_address"), 0)
                for _ in range(PLANES_PER_PASS)]
    expected = {}
    for tile in range(tiles):
        for vector in range(max(vectors, PLANES_PER_PASS)):
            command = dict.fromkeys(commands[0], 0)
            command["swap"] = int(vector == 0)
            command["x_address"] = min(vector, vectors - 1)
            expected[len(commands)] = blocks[command["x_address"]] @ codes[tile]
            commands.append(command)
    first_cycle = [PLANES_PER_PASS + tile * max(vectors, PLANES_PER_PASS) for tile in range(tiles)]
    for tile in range(tiles):
        begin = 0 if tile == 0 else first_cycle[tile - 1]
        for plane in range(PLANES_PER_PASS):
            commands[begin + plane].update(
                load=1, load_first=int(plane == 0), load_signed=int(is_signed[tile]),
                plane_address=tile * PLANES_PER_PASS + plane,
            )

    seen = {}
    for cycle in range(len(commands) + LATENCY + 1):
        command = commands[cycle] if cycle < len(commands) else dict.fromkeys(commands[0], 0)
        dut.command.value = streams.pack(command_layout(sizes), command)
        await RisingEdge(dut.clk)
        value = int(dut.sums.value)
        seen[cycle - LATENCY] = [
            streams.unpack_signed(value >> SUM_BITS * column, SUM_BITS) for column in range(sizes.columns)
        ]
    for cycle, sums in expected.items():
        assert seen[cycle] == list(sums), f"cycle {cycle}"


@pytest.mark.parametrize("columns", [4, 8])
def test_array(columns: int) -> None:
    sizes = Arch(columns=columns, expert_beats=64, token_blocks=64, data_bits=32)
    run_bench(Array(sizes), __name__, columns=columns)
