"""Softcaps of magnitudes, against the integer twin."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge

from moe_hw.quantised import cap_words
from moe_hw.registers import NO_CAP
from moe_hw.spec import ExpertSpec
from moe_hw.twins.arith import EXP_MIN
from moe_hw.twins.post import softcapped
from rtl_gen.softcap import LATENCY, Softcap
from rtl_gen.types import layer_layout
from sim.bench.runner import run_bench
from sim.bench.streams import pack, start


def test_softcap() -> None:
    run_bench(Softcap(), __name__)


def random_caps() -> dict[str, int]:
    """Caps of gate and up, one of them perhaps missing."""
    gate, up = (random.choice([None, 1.0, 4.0, 25.0, 2.0**-20, 2.0**20, random.uniform(0.5, 50)]) for _ in range(2))
    return cap_words(ExpertSpec(1, gate_softcap=gate, up_softcap=up))


async def check(dut: Any, layer: dict[str, int], magnitudes: list[tuple[int, int, int]]) -> None:
    """Magnitudes ``(of_up, mantissa, exponent)`` give the twin's, ``LATENCY`` cycles later."""
    dut.layer.value = pack(layer_layout(), layer)
    found = []
    feed = iter(magnitudes + [(0, 0, EXP_MIN)] * LATENCY)
    await FallingEdge(dut.clk)
    while len(found) < len(magnitudes) + LATENCY:
        dut.of_up.value, dut.mantissa.value, dut.exponent.value = next(feed)
        await FallingEdge(dut.clk)
        found.append((int(dut.o_mantissa.value), dut.o_exponent.value.to_signed()))
    for (of_up, mantissa, exponent), got in zip(magnitudes, found[LATENCY - 1 :], strict=False):
        name = "up_cap" if of_up else "gate_cap"
        want = softcapped((mantissa, exponent), layer[name], layer[f"{name}_inverse"])
        assert got == tuple(int(part) for part in want), f"{name} of {mantissa} * 2^{exponent} in {layer}"


def random_magnitude() -> tuple[int, int, int]:
    if random.random() < 0.05:
        return random.randrange(2), 0, EXP_MIN
    mantissa = random.choice([1 << 15, 0xFFFF, random.randint(1 << 15, 0xFFFF)])
    return random.randrange(2), mantissa, random.choice([random.randint(-45, 10), random.randint(-1000, 1000)])


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def random_magnitudes(dut: Any) -> None:
    await start(dut)
    for _ in range(20):
        await check(dut, random_caps(), [random_magnitude() for _ in range(200)])


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def every_piece(dut: Any) -> None:
    """A cap of one and of an odd number, in all pieces of the table and beyond it."""
    await start(dut)
    for cap in (1.0, 25.0):
        layer = cap_words(ExpertSpec(1, gate_softcap=cap, up_softcap=cap))
        magnitudes = []
        for piece in range(540):
            value = random.uniform(piece, piece + 1) * cap / 64
            exponent = 0
            while value * 2.0**-exponent < 1 << 15:
                exponent -= 1
            magnitudes.append((random.randrange(2), int(value * 2.0**-exponent), exponent))
        await check(dut, layer, magnitudes)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def without_a_cap_nothing_changes(dut: Any) -> None:
    await start(dut)
    layer = {"gate_cap_inverse": NO_CAP, "up_cap_inverse": NO_CAP, "gate_cap": 0, "up_cap": 0}
    magnitudes = [random_magnitude() for _ in range(200)]
    for _, mantissa, exponent in magnitudes:
        assert softcapped((mantissa, exponent), 0, NO_CAP) == (mantissa, exponent)
    await check(dut, layer, magnitudes)
