"""Activation functions of the array's accumulators, against the integer twin."""

from __future__ import annotations

import itertools
import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, RisingEdge
from cocotb.utils import get_sim_time

from moe_hw.arch import Arch
from moe_hw.quantised import cap_words
from moe_hw.registers import NO_LIMIT
from moe_hw.spec import ExpertSpec
from moe_hw.twins.post import Form, activate
from rtl_gen.post import LATENCY, Post
from rtl_gen.types import Kind, hidden_values_layout, layer_layout, result_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, pack, receive, reset, send, start

MOST_NEGATIVE = -(1 << 47)


@pytest.mark.parametrize(("columns", "lanes"), [(4, 1), (8, 2), (64, 4)])
def test_post(columns: int, lanes: int) -> None:
    run_bench(Post(sizes(columns, lanes)), __name__, columns=columns, lanes=lanes)


def sizes(columns: int, lanes: int) -> Arch:
    return Arch(columns=columns, lanes=lanes, data_bits=32 * lanes, slots=8, max_tokens=16)


def bench_arch() -> Arch:
    return sizes(int(parameter("columns")), int(parameter("lanes")))


PREFIXES = ("", "shared_")
FORMS = [(1, 0, 0), (0, 0, 0), (0, 1, 0), (1, 0, 1)]
"""Gated, square and softcap."""
CAPS = ("gate_cap", "gate_cap_inverse", "up_cap", "up_cap_inverse")


def random_limit() -> int:
    """None, or one in the range of the accumulators."""
    exponent = random.randint(-40, 10) & 0xFFF
    return random.choice([NO_LIMIT, exponent << 16 | random.choice([1 << 15, 0xFFFF, random.randint(1 << 15, 0xFFFF)])])


def random_layer(**given: int) -> dict[str, int]:
    # Accumulators have up to 47 bits: exponents around -40 put the gates around the tables' range.
    exponents = ("gate_exponent", "up_exponent")
    limits = ("gate_limit", "up_limit", "up_lower_limit")
    gated, square, softcap = random.choice(FORMS)
    caps = [random.choice([None, 4.0, 25.0, random.uniform(0.1, 50)]) for _ in range(2)]
    return {
        **{prefix + name: random.randint(-60, -20) for prefix in PREFIXES for name in exponents},
        **{prefix + name: random_limit() for prefix in PREFIXES for name in limits},
        "activation": random.randrange(5),
        "gated": gated,
        "square": square,
        **cap_words(ExpertSpec(1, gate_softcap=caps[0], up_softcap=caps[1])),
        "softcap": softcap,
        **given,
    }


def unlimited(**given: int) -> dict[str, int]:
    limits = {prefix + name: NO_LIMIT for prefix in PREFIXES for name in ("gate_limit", "up_limit", "up_lower_limit")}
    return {"gated": 1, **limits, **given}


def random_acc() -> int:
    return random.choice(
        [
            0,
            MOST_NEGATIVE,
            (1 << 47) - 1,
            random.choice([-1, 1]) << random.randrange(47),
            random.randint(MOST_NEGATIVE, -MOST_NEGATIVE - 1) >> random.randrange(47),
            random.randint(MOST_NEGATIVE, -MOST_NEGATIVE - 1) >> random.randrange(20),
        ]
    )


def random_result(arch: Arch, **given: Any) -> dict[str, Any]:
    return {
        "kind": Kind.UP,
        "shared": random.randrange(2),
        "last": random.randrange(2),
        "slot": random.randrange(arch.slots),
        "group": random.randrange((1 << 16) * 2 // arch.columns),
        "of": {"token": random.randrange(arch.max_tokens), "unused": random.randrange(2)},
        "base_exponent": random.randint(-30, 30),
        "token_exponent": random.randint(-30, 30),
        "acc": [random_acc() for _ in range(arch.columns)],
        **given,
    }


def expected(arch: Arch, layer: dict[str, int], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    values = []
    for word in results:
        prefix = "shared_" if word["shared"] else ""
        form = Form(
            *(layer.get(name, 0) for name in ("activation", "gated", "square")),
            *(layer[f"{prefix}{name}"] for name in ("gate_limit", "up_limit", "up_lower_limit")),
            *((layer[name] for name in ("softcap", *CAPS)) if layer.get("softcap") else ()),
        )
        columns = 1 + form.gated  # of a neuron
        neurons = arch.columns // columns
        signs, mantissas, exponents = activate(
            word["acc"][::columns],
            word["acc"][form.gated :: columns],
            word["base_exponent"] + layer[f"{prefix}gate_exponent"],
            word["base_exponent"] + layer[f"{prefix}up_exponent"],
            form,
        )
        activations = [
            {"sign": int(sign), "mantissa": int(mantissa), "exponent": int(exponent)}
            for sign, mantissa, exponent in zip(signs, mantissas, exponents, strict=True)
        ]
        for first in range(0, neurons, arch.lanes):
            values.append(
                {
                    "slot": word["slot"],
                    "unused": word["of"]["unused"],
                    "shared": word["shared"],
                    "neuron": (word["group"] * neurons + first) & 0xFFFF,
                    "values": activations[first : first + arch.lanes],
                    "last": int(word["last"] and first + arch.lanes == neurons),
                }
            )
    return values


async def check(dut: Any, layer: dict[str, int], results: list[dict[str, Any]], idle: str, pressure: str) -> None:
    arch = bench_arch()
    dut.layer.value = pack(layer_layout(), layer)
    await RisingEdge(dut.clk)
    values = expected(arch, layer, results)
    cocotb.start_soon(send(dut, "results", result_layout(arch), results, PATTERNS[idle]))
    out = await receive(dut, "values", hidden_values_layout(arch), len(values), PATTERNS[pressure])
    for number, (got, want) in enumerate(zip(out, values, strict=True)):
        assert got == want, f"value {number}"


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS), pressure=list(PATTERNS))
async def random_results(dut: Any, idle: str, pressure: str) -> None:
    await start(dut)
    for _ in range(3):
        await check(dut, random_layer(), [random_result(bench_arch()) for _ in range(40)], idle, pressure)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(activation=list(range(5)))
async def activations_everywhere(dut: Any, activation: int) -> None:
    """Gates of both signs in all pieces of the tables and beyond their ends; ups of one."""
    await start(dut)
    arch = bench_arch()
    layer = unlimited(gate_exponent=-14, up_exponent=-14, activation=activation)
    gates = [sign * (piece << 9 | random.randrange(512)) for piece in range(520) for sign in (-1, 1)]
    gates += [0] * (-len(gates) % (arch.columns // 2))
    results = []
    for first in range(0, len(gates), arch.columns // 2):
        acc = [value for gate in gates[first : first + arch.columns // 2] for value in (gate, 1 << 14)]
        results.append(random_result(arch, shared=0, base_exponent=0, acc=acc))
    await check(dut, layer, results, "always", "always")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def far_exponents(dut: Any) -> None:
    """Gates far above and far below the table's range."""
    await start(dut)
    for exponent in (-400, -120, -61, 0, 100, 300):
        layer = unlimited(gate_exponent=exponent, up_exponent=-exponent)
        await check(dut, layer, [random_result(bench_arch(), shared=0) for _ in range(5)], "always", "always")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def as_many_values_a_cycle_as_lanes(dut: Any) -> None:
    await start(dut)
    for gated, softcap in ((0, 0), (1, 0), (1, 1)):
        results = [random_result(bench_arch()) for _ in range(20)]
        await RisingEdge(dut.clk)
        begin = get_sim_time("ns")
        await check(dut, random_layer(gated=gated, square=0, softcap=softcap), results, "always", "always")
        values = 20 * bench_arch().columns // (1 + gated - softcap)
        cycles = round((get_sim_time("ns") - begin) / 10)
        assert cycles == 1 + LATENCY + values // bench_arch().lanes  # one for the layer


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def at_the_limits(dut: Any) -> None:
    """Gates and ups one below, at and one above their limits, of both signs."""
    await start(dut)
    arch = bench_arch()
    limits = [random.randint(1 << 15, 0xFFFE) for _ in range(3)]
    names = ("gate_limit", "up_limit", "up_lower_limit")
    words = {name: (-14 & 0xFFF) << 16 | limit for name, limit in zip(names, limits, strict=True)}
    for activation, (gated, square, softcap) in itertools.product((0, 4), FORMS):
        layer = random_layer(activation=activation) | unlimited(gate_exponent=-14, up_exponent=-14) | words
        layer |= {"gated": gated, "square": square, "softcap": softcap}
        values = [sign * (limit + step) for limit in limits for step in (-1, 0, 1) for sign in (-1, 1)]
        results = [
            random_result(arch, shared=0, base_exponent=0, acc=random.choices(values, k=arch.columns))
            for _ in range(40)
        ]
        await check(dut, layer, results, "always", "always")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await start(dut)
    for _ in range(5):
        results = [random_result(bench_arch()) for _ in range(20)]
        layer = random_layer()
        dut.layer.value = pack(layer_layout(), layer)
        dut.values__ready.value = random.randrange(2)
        sender = cocotb.start_soon(send(dut, "results", result_layout(bench_arch()), results))
        await ClockCycles(dut.clk, random.randint(2, 40))
        sender.cancel()
        dut.results__valid.value = 0
        await reset(dut)
        await check(dut, layer, results, "always", "sometimes")
