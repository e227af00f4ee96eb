"""The loader: an input record arrives piece by piece, in order, on any bus width."""

import random

import cocotb
import pytest
from amaranth.hdl import signed
from cocotb.triggers import ClockCycles, RisingEdge

from moe_hw.arch import EXP_BITS, ROWS, SEGMENT_ALIGN, Arch
from rtl_gen.loader import Loader
from rtl_gen.token_buffer import piece_bytes
from rtl_gen.types import layer_layout
from sim.bench import streams
from sim.bench.memory import serve_ranges
from sim.bench.runner import parameter, run_bench


def sizes(data_bits: int) -> Arch:
    return Arch(columns=16, data_bits=data_bits)


async def load(dut, arch: Arch, tokens: int, blocks: int, idle: streams.Pattern, stall: streams.Pattern,
               fault: bool = False) -> None:
    mantissas = random.randbytes(2 * tokens * blocks * ROWS)
    exponents = [random.randint(-2048, 2047) for _ in range(tokens * blocks)]
    record = mantissas + b"".join(value.to_bytes(2, "little", signed=True) for value in exponents)
    record += bytes(-len(record) % SEGMENT_ALIGN)
    address = random.randrange(1, 5)
    memory = bytes(address * SEGMENT_ALIGN) + record
    errors = {address * SEGMENT_ALIGN} if fault else set()

    memory_task = cocotb.start_soon(serve_ranges(dut, arch, memory, idle, errors))
    dut.layer.value = streams.pack(layer_layout(), {"tokens": tokens, "hidden_blocks": blocks})
    dut.address.value, dut.start.value = address, 0
    await RisingEdge(dut.clk)
    dut.start.value = 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    piece = piece_bytes(arch)
    got = cocotb.start_soon(streams.receive(dut, "mantissas", 8 * piece, len(mantissas) // piece, stall))
    try:
        got_exponents = await streams.receive(dut, "exponents", signed(EXP_BITS), len(exponents), stall)
        assert got_exponents == exponents
        assert b"".join(value.to_bytes(piece, "little") for value in await got) == mantissas
        while int(dut.busy.value):
            await RisingEdge(dut.clk)
        assert int(dut.error.value) == fault
    finally:
        memory_task.cancel()
        got.cancel()


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def records(dut, idle, stall):
    arch = sizes(int(parameter("data_bits")))
    dut.start.value = 0
    await streams.start(dut)
    for tokens, blocks in ((1, 1), (1, 3), (2, 1), (3, 5), (16, 2)):
        await load(dut, arch, tokens, blocks, streams.PATTERNS[idle], streams.PATTERNS[stall])


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def an_error_is_reported_once(dut):
    arch = sizes(int(parameter("data_bits")))
    dut.start.value = 0
    await streams.start(dut)
    await load(dut, arch, 2, 2, streams.always, streams.always, fault=True)
    await load(dut, arch, 1, 2, streams.always, streams.always)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def reset_in_flight(dut):
    """Among mantissas and among exponents, with and without an error before."""
    arch = sizes(int(parameter("data_bits")))
    dut.start.value = 0
    await streams.start(dut)
    for number in range(10):
        shape = arch.data_bits // 32, 2
        working = cocotb.start_soon(load(dut, arch, *shape, streams.always, streams.always, fault=number % 2 == 1))
        await ClockCycles(dut.clk, random.randint(3, 100))
        await streams.interrupt(
            dut, working, "start", "words__valid", "ranges__ready", "mantissas__ready", "exponents__ready"
        )
        assert int(dut.busy.value) == int(dut.error.value) == 0
        await load(dut, arch, 3, 1, streams.always, streams.PATTERNS["sometimes"])


@pytest.mark.parametrize("data_bits", [32, 512])
def test_loader(data_bits: int) -> None:
    run_bench(Loader(sizes(data_bits)), __name__, data_bits=data_bits)
