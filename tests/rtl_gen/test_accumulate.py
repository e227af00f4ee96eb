"""Scale-accumulate against the integer rule of docs/numerics.md section 3."""

import random

import cocotb
import pytest
from cocotb.triggers import RisingEdge

from moe_hw.arch import TILES_PER_SCALE_BEAT, Arch
from moe_hw.twins.arith import rshift
from rtl_gen.accumulate import FRACTION, Accumulate, tag_layout
from rtl_gen.row import SUM_BITS
from rtl_gen.types import Kind, result_layout
from sim.bench import streams
from sim.bench.runner import parameter, run_bench
from tests.moe_hw.scales import SCALES


def sizes(slots: int) -> Arch:
    return Arch(columns=4, slots=slots, max_tokens=32, data_bits=32)


def random_matrix(arch: Arch, groups: int, blocks: int, slots: int) -> tuple[list[dict], list[int], list[dict]]:
    """Products of a matrix in the sequencer's order, its scale beats, and the results they make."""
    products, beats, results = [], [], []
    acc = {}
    tiles = groups * blocks
    for tile in range(tiles):
        index = tile % TILES_PER_SCALE_BEAT
        if index == 0:
            beats.append(random.getrandbits(arch.beat_bits))
        group, block = divmod(tile, blocks)
        scales = [beats[-1] >> 8 * (arch.columns * index + column) & 0xFF for column in range(arch.columns)]
        for slot in range(slots):
            extreme = random.random() < 0.1
            dots = [random.choice((-(1 << 16), 1 << 16)) if extreme else random.randint(-(1 << 16), 1 << 16)
                    for _ in range(arch.columns)]
            shift = random.choice((0, 1, 7, 24, 63, 89)) if random.random() < 0.2 else random.randint(18, 50)
            last = slot == slots - 1
            tag = {
                "result": {
                    "kind": Kind.UP.value, "shared": 0, "last": int(last and group == groups - 1),
                    "slot": slot, "group": group, "base_exponent": -slot, "token_exponent": group,
                    "of": {
                        "token": slots - 1 - slot, "unused": slot & 1,
                        "weight": {"mantissa": slot, "exponent": -15, "negative": 0},
                    },
                },
                "first": int(block == 0),
                "complete": int(block == blocks - 1),
                "shift": shift,
                "scale_index": index,
                "scale_pop": int(last and (index == TILES_PER_SCALE_BEAT - 1 or tile == tiles - 1)),
            }
            products.append({"sums": dots, "tag": tag})
            if block == 0:
                acc[slot] = [0] * arch.columns
            for column, (dot, scale) in enumerate(zip(dots, scales, strict=True)):
                frac, f = SCALES[scale].tolist()
                product = dot * (32 + frac) << FRACTION - 2
                acc[slot][column] += int(rshift(product, min(63, shift + f)))
            if block == blocks - 1:
                results.append({**tag["result"], "acc": acc[slot]})
    return products, beats, results


async def feed(dut, arch: Arch, products: list[dict], pattern: streams.Pattern, credits: list[int]) -> None:
    """Sums follow their tag by a cycle."""
    active = pattern()
    mask = (1 << SUM_BITS) - 1
    for product in products:
        complete = product["tag"]["complete"]
        while not next(active) or (complete and credits[0] == 0):
            await RisingEdge(dut.clk)
            dut.valid.value = 0
        credits[0] -= complete
        dut.tag.value = streams.pack(tag_layout(arch), product["tag"])
        dut.valid.value = 1
        await RisingEdge(dut.clk)
        dut.valid.value = 0
        dut.sums.value = sum((dot & mask) << SUM_BITS * column for column, dot in enumerate(product["sums"]))


async def run(dut, arch: Arch, shape: tuple[int, int, int], idle: streams.Pattern, stall: streams.Pattern) -> None:
    products, beats, expected = random_matrix(arch, *shape)
    credits = [arch.slots]
    cocotb.start_soon(streams.send(dut, "scales", arch.beat_bits, beats))
    for _ in range(4):
        await RisingEdge(dut.clk)
    cocotb.start_soon(feed(dut, arch, products, idle, credits))
    for want in expected:
        (got,) = await streams.receive(dut, "results", result_layout(arch), 1, stall)
        credits[0] += 1
        assert got == want


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def matrices(dut, idle, stall):
    """Whole matrices, one slot (a sum every cycle to the same accumulator) to all of them."""
    arch = sizes(int(parameter("slots")))
    await streams.start(dut)
    for slots in sorted({1, min(2, arch.slots), arch.slots}):
        for groups, blocks in ((1, 1), (3, 1), (2, 3), (3, 4)):
            await run(dut, arch, (groups, blocks, slots), streams.PATTERNS[idle], streams.PATTERNS[stall])


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def reset_in_flight(dut):
    """After a reset nothing of an interrupted matrix is left."""
    arch = sizes(int(parameter("slots")))
    await streams.start(dut)
    products, beats, _ = random_matrix(arch, 2, 2, arch.slots)
    cocotb.start_soon(streams.send(dut, "scales", arch.beat_bits, beats))
    await feed(dut, arch, products[: len(products) // 2 + 1], streams.always, [arch.slots])
    await streams.reset(dut)
    await run(dut, arch, (2, 3, arch.slots), streams.always, streams.always)


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_accumulate(slots: int) -> None:
    run_bench(Accumulate(sizes(slots)), __name__, slots=slots)
