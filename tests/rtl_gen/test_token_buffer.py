"""The token buffer: where mantissas and exponents land, on any bus width."""

import random

import cocotb
import pytest
from amaranth.hdl import signed
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import EXP_BITS, ROWS, Arch
from rtl_gen.token_buffer import TokenBuffer, piece_bytes
from rtl_gen.types import hidden_block_layout, layer_layout
from sim.bench import streams
from sim.bench.runner import parameter, run_bench


def sizes(data_bits: int) -> Arch:
    return Arch(columns=16, data_bits=data_bits, token_blocks=64, max_tokens=4)


async def watch(dut, bank: dict[tuple[int, int], int]) -> None:
    """Keeps what the row banks would hold, by (block, row)."""
    while True:
        await ReadOnly()
        rows = int(dut.x_write.value)
        if rows:
            address, values = int(dut.x_address.value), int(dut.x.value)
            for row in range(ROWS):
                if rows >> row & 1:
                    bank[address, row] = values >> 8 * row & 0xFF
        await RisingEdge(dut.clk)


async def exponents_of(dut, address: int, token: int, slot: int, hidden: int) -> tuple[int, int, int]:
    dut.read__address.value, dut.read__token.value = address, token
    dut.read__slot.value, dut.read__hidden.value = slot, hidden
    await RisingEdge(dut.clk)
    await ReadOnly()
    names = ("block_exponent", "vector_exponent", "token_exponent")
    values = tuple(getattr(dut, f"read__{name}").value.to_signed() for name in names)
    await RisingEdge(dut.clk)
    return values


async def feed(dut, arch: Arch, tokens: int, blocks: int, stride: int,
               pattern: streams.Pattern) -> tuple[bytes, list[list[int]], list[dict]]:
    """Send the inputs of a batch and the hidden blocks of one job: returns mantissas, exponents and blocks."""
    dut.layer.value = streams.pack(layer_layout(), {"tokens": tokens, "hidden_blocks": blocks})
    dut.hidden_stride.value = stride
    dut.restart.value = 1
    await RisingEdge(dut.clk)
    dut.restart.value = 0
    mantissas = random.randbytes(2 * tokens * blocks * ROWS)
    exponents = [[random.randint(-200, 200) for _ in range(blocks)] for _ in range(tokens)]
    piece = piece_bytes(arch)
    pieces = [int.from_bytes(mantissas[at : at + piece], "little") for at in range(0, len(mantissas), piece)]
    await streams.send(dut, "mantissas", 8 * piece, pieces, pattern)
    assert not int(dut.loaded.value)
    flat = [value for token in exponents for value in token]
    await streams.send(dut, "exponents", signed(EXP_BITS), flat, pattern)
    await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    assert int(dut.loaded.value)

    # Slots in order within a block number, as the requantiser sends them.
    hidden = [
        {
            "slot": slot, "block": block, "exponent": random.randint(-500, 500),
            "mantissas": [random.randint(-128, 127) for _ in range(ROWS)],
            "last": int(block == stride - 1 and slot == tokens - 1),
        }
        for block in range(stride) for slot in range(tokens)
    ]  # fmt: skip
    await streams.send(dut, "blocks", hidden_block_layout(arch), hidden, pattern)
    while not int(dut.hidden_ready.value):
        await RisingEdge(dut.clk)
    return mantissas, exponents, hidden


async def run_batch(dut, arch: Arch, tokens: int, blocks: int, stride: int, pattern: streams.Pattern) -> None:
    """Send a batch and check that all of it is where it should be."""
    bank: dict[tuple[int, int], int] = {}
    watcher = cocotb.start_soon(watch(dut, bank))
    try:
        mantissas, exponents, hidden = await feed(dut, arch, tokens, blocks, stride, pattern)
    finally:
        watcher.cancel()

    for place in range(2 * tokens * blocks):
        assert bytes(bank[place, row] for row in range(ROWS)) == mantissas[place * ROWS : (place + 1) * ROWS]
    for token in range(tokens):
        for block in range(blocks):
            got = await exponents_of(dut, token * blocks + block, token, 0, 0)
            assert got == (exponents[token][block], max(exponents[token]), max(exponents[token]))
    for entry in hidden:
        place = 2 * tokens * blocks + entry["slot"] * stride + entry["block"]
        assert [streams.unpack_signed(bank[place, row], 8) for row in range(ROWS)] == entry["mantissas"]
        largest = max(other["exponent"] for other in hidden if other["slot"] == entry["slot"])
        got = await exponents_of(dut, place, tokens - 1, entry["slot"], 1)
        assert got == (entry["exponent"], largest, max(exponents[tokens - 1]))


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS))
async def batches(dut, idle):
    arch = sizes(int(parameter("data_bits")))
    dut.restart.value = 0
    await streams.start(dut)
    for shape in ((1, 1, 1), (4, 3, 2), (2, 5, 7)):
        await run_batch(dut, arch, *shape, streams.PATTERNS[idle])


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def reset_in_flight(dut):
    """Among mantissas, exponents and hidden blocks."""
    arch = sizes(int(parameter("data_bits")))
    dut.restart.value = 0
    await streams.start(dut)
    for _ in range(12):
        working = cocotb.start_soon(run_batch(dut, arch, 2, 1, 7, streams.always))
        await ClockCycles(dut.clk, random.randint(1, 90))
        await streams.interrupt(dut, working, "restart", "mantissas__valid", "exponents__valid", "blocks__valid")
        assert not int(dut.loaded.value)
        await run_batch(dut, arch, 3, 2, 2, streams.always)


@pytest.mark.parametrize("data_bits", [32, 256])
def test_token_buffer(data_bits: int) -> None:
    run_bench(TokenBuffer(sizes(data_bits)), __name__, data_bits=data_bits)
