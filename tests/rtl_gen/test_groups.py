"""Keys of groups, and of the experts in those that are kept, against the router's twin."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ACC_BITS, MAX_GROUPS, Arch
from moe_hw.twins.router import Rules, in_groups
from rtl_gen.groups import Groups
from rtl_gen.types import layer_layout
from sim.bench.runner import run_bench
from sim.bench.streams import pack, reset, start, unpack_signed

LARGEST = (1 << ACC_BITS - 2) - 1
"""Two of them are a key."""


def test_groups() -> None:
    run_bench(Groups(Arch()), __name__)


async def begin(dut: Any) -> None:
    for name in ("clear", "grouping", "keep", "valid", "last"):
        getattr(dut, name).value = 0
    await start(dut)


async def pulse(dut: Any, name: str) -> None:
    getattr(dut, name).value = 1
    await RisingEdge(dut.clk)
    getattr(dut, name).value = 0


async def scan(dut: Any, keys: list[int], idle: float, late: bool) -> list[tuple[int, int]]:
    """Send a token's keys; the last one is marked, or a cycle behind it is. Returns what came out: (index, key)."""
    out: list[tuple[int, int]] = []

    async def collect() -> None:
        while True:
            await ReadOnly()
            if int(dut.o_valid.value):
                out.append((int(dut.o_index.value), unpack_signed(int(dut.o_key.value), ACC_BITS)))
            if int(dut.o_last.value):
                return
            await RisingEdge(dut.clk)

    collecting = cocotb.start_soon(collect())
    for number, key in enumerate(keys):
        while random.random() < idle:
            await RisingEdge(dut.clk)
        dut.valid.value, dut.key.value, dut.last.value = 1, key, int(number == len(keys) - 1 and not late)
        await RisingEdge(dut.clk)
        dut.valid.value = dut.last.value = 0
    if late:
        await pulse(dut, "last")
    await collecting
    await RisingEdge(dut.clk)
    return out


async def check(dut: Any, rules: Rules, keys: list[int], idle: float = 0) -> None:
    dut.layer.value = pack(layer_layout(), {name: getattr(rules, name) for name in Rules._fields})
    late = random.random() < 0.5
    await pulse(dut, "clear")
    if rules.group_size:
        dut.grouping.value = 1
        groups = [keys[first : first + rules.group_size] for first in range(0, len(keys), rules.group_size)]
        worth = [sum(sorted(group)[-2:]) if rules.group_sum else max(group) for group in groups]
        assert await scan(dut, keys, idle, late) == list(enumerate(worth))
        dut.grouping.value = 0
        for group in sorted(range(len(groups)), key=lambda group: (-worth[group], group))[: rules.kept_groups]:
            dut.group.value = group
            await pulse(dut, "keep")
    masked = in_groups(np.array([keys]), rules)[0].tolist()
    expected = [(index, key) for index, key in enumerate(masked) if key >= -LARGEST - 1]
    assert await scan(dut, keys, idle, late) == expected


def random_rules() -> Rules:
    experts = random.choice([1, 2, 12, 30, 256])
    sizes = [size for size in range(1, experts + 1) if experts % size == 0 and experts // size <= MAX_GROUPS]
    size = random.choice([0, *sizes])
    kept = random.randint(1, min(31, experts // size)) if size else 0
    two = int(size > 1) and random.randrange(2)
    return Rules(experts, 1, group_size=size, kept_groups=kept, group_sum=two, group_zero=random.randrange(2))


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=[0, 0.5])
async def random_tokens(dut: Any, idle: float) -> None:
    await begin(dut)
    for _ in range(60):
        rules = random_rules()
        width = random.choice([1, 3, 30])
        keys = [random.getrandbits(width) - (1 << width - 1) for _ in range(rules.experts)]
        await check(dut, rules, keys, idle)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def extreme_keys(dut: Any) -> None:
    await begin(dut)
    for _ in range(20):
        rules = random_rules()
        await check(dut, rules, [random.choice([-LARGEST - 1, LARGEST, 0]) for _ in range(rules.experts)])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_most_groups(dut: Any) -> None:
    await begin(dut)
    for kept in (1, 31):
        rules = Rules(64, 1, group_size=2, kept_groups=kept, group_sum=1)
        await check(dut, rules, [random.randrange(9) for _ in range(64)])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    dut.layer.value = pack(layer_layout(), {"group_size": 3})
    dut.valid.value = 1
    await ClockCycles(dut.clk, 5)
    dut.valid.value = 0
    await reset(dut)
    await check(dut, Rules(12, 1, group_size=3, kept_groups=2, group_sum=1), list(range(12)))
