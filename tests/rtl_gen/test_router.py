"""Choices and weights of random logits against the router's twin."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ACC_BITS, MAX_GROUPS, Arch
from moe_hw.registers import ONE
from moe_hw.twins import router as twin
from rtl_gen.router import Router
from rtl_gen.types import Kind, layer_layout, result_layout, route_layout
from sim.bench.memory import serve_corrections
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, pack, receive, reset, send, start
from tests.rtl_gen.batches import even_parts

LARGEST = (1 << ACC_BITS - 1) - 1

ARCHES = {
    "one_slot": Arch(columns=4, max_tokens=4, slots=1, max_experts=2, max_top_k=1, logit_words=2),
    "small": Arch(columns=4, max_tokens=8, slots=4, max_experts=16, max_top_k=4, logit_words=32),
    "wide": Arch(columns=32, max_tokens=64, slots=8, max_experts=512, max_top_k=16, logit_words=1 << 8),
}


@pytest.mark.parametrize("arch", ["one_slot", "wide"])
def test_router(arch: str) -> None:
    run_bench(Router(ARCHES[arch]), __name__, arch=arch)


@pytest.mark.bench  # four minutes; the small accelerator of test_netlist.py has a router, too
def test_netlist() -> None:
    run_bench(Router(ARCHES["small"]), __name__, "random_batches", netlist=True, arch="small")


def bench_arch() -> Arch:
    return ARCHES[parameter("arch")]


def groups_of(arch: Arch, layer: dict[str, int]) -> int:
    return -(-(layer["experts"] + layer["shared_gate"]) // arch.columns)


def random_layer(arch: Arch, **given: int) -> dict[str, int]:
    experts = given.get("experts", random.choice([2, arch.max_experts, random.randint(2, arch.max_experts)]))
    most = min(arch.max_top_k, experts)
    shared = random.randrange(3)
    layer = {
        "experts": experts,
        "top_k": random.choice([1, most, random.randint(1, most)]),
        "normalise": random.randrange(2),
        "shared_blocks": random.randint(1, 1023) if shared else 0,
        "shared_gate": int(shared == 2),
        "router_exponent": random.randint(-60, -20),
        "scale": random.choice([ONE, (random.randint(-40, 0) & 0xFFF) << 16 | 1 << 15 | random.getrandbits(15)]),
        **random_rules(arch, experts, most),
        **given,
    }
    most_slots = min(arch.slots, arch.logit_words // groups_of(arch, layer))
    most = min(arch.max_tokens, 6)
    return {
        "slots": random.choice([most_slots, random.randint(1, most_slots)]),
        "tokens": random.choice([1, most, random.randint(1, most)]),
        **layer,
    }


def random_rules(arch: Arch, experts: int, most: int) -> dict[str, int]:
    """How experts are chosen: in a third of all cases by the logits of a softmax, of all that there are."""
    if random.randrange(3) == 0:
        return {"epsilon": 1}
    score = random.randrange(3)
    correction = random.randrange(3 if score else 2)
    rules = {
        "score": score,
        "epsilon": random.choice([1, 1073, (1 << 31) - 1]),
        "correction": correction,
        "correction_shift": random.choice([0, 0, 14]),
    }
    sizes = [size for size in range(1, experts + 1) if experts % size == 0 and experts // size <= MAX_GROUPS]
    if random.randrange(2):
        rules["group_size"] = size = random.choice(sizes)
        rules["kept_groups"] = kept = random.randint(1, min(experts // size, arch.max_top_k))
        rules["group_sum"] = int(correction > 0 and size > 1) and random.randrange(2)
        rules["group_zero"] = int(correction > 0) and random.randrange(2)
        rules["top_k"] = random.randint(1, most if rules["group_zero"] else min(most, kept * size))
    return rules


def random_table(layer: dict[str, int]) -> list[int]:
    """A correction for each expert, of the size of the scores or as large as they can be."""
    bits = random.choice([1, 20, 27, 32])
    return [random.getrandbits(bits) - (1 << bits - 1) for _ in range(layer["experts"])]


def random_logits(arch: Arch, layer: dict[str, int]) -> np.ndarray:
    """[tokens, groups * columns] accumulators; the padding behind the rows is larger than any logit."""
    width = random.choice([1, 3, 20, 36, 44, 48])
    words = layer["tokens"], groups_of(arch, layer) * arch.columns
    logits = [random.getrandbits(ACC_BITS) - LARGEST - 1 >> ACC_BITS - width for _ in range(words[0] * words[1])]
    logits = np.array(logits, np.int64).reshape(words)
    logits[:, layer["experts"] + layer["shared_gate"] :] = LARGEST
    return logits


def results_of(arch: Arch, layer: dict[str, int], logits: np.ndarray, bases: list[int]) -> list[dict[str, Any]]:
    """Job by job, group by group, slot by slot."""
    groups = logits.shape[1] // arch.columns
    results = []
    first = 0
    for slots in even_parts(layer["tokens"], layer["slots"]):
        results += [
            {
                "kind": Kind.ROUTER,
                "slot": slot,
                "group": group,
                "of": {"token": first + slot},
                "base_exponent": bases[first + slot],
                "last": int(slot == slots - 1 and group == groups - 1),
                "acc": [int(x) for x in logits[first + slot, group * arch.columns : (group + 1) * arch.columns]],
            }
            for group in range(groups)
            for slot in range(slots)
        ]
        first += slots
    return results


def expected(layer: dict[str, int], logits: np.ndarray, bases: list[int], table: list[int]) -> list[dict[str, Any]]:
    rules = twin.Rules(**{name: layer[name] for name in twin.Rules._fields if name in layer})
    routes = twin.route(logits, np.array(bases) + layer["router_exponent"], rules, table)
    out = []
    for token in range(layer["tokens"]):
        columns = [routes.experts, routes.mantissas, routes.exponents]
        entries = list(zip(*(column[token].tolist() for column in columns), strict=True))
        if routes.shared is not None:
            entries.append((layer["experts"], *(int(column[token]) for column in routes.shared)))
        for expert, mantissa, exponent in entries:
            weight = {"mantissa": mantissa, "exponent": exponent, "negative": 0}
            out.append({"token": token, "expert": expert, "none": 0, "weight": weight, "last": 0})
    out[-1]["last"] = 1
    return out


async def check(
    dut: Any,
    layer: dict[str, int],
    logits: np.ndarray,
    bases: list[int],
    idle: str = "always",
    pressure: str = "always",
    delays: tuple[int, ...] = (1, 300),
) -> None:
    arch = bench_arch()
    dut.layer.value = pack(layer_layout(), layer)
    await ClockCycles(dut.clk, 2)
    table = random_table(layer)
    routes = expected(layer, logits, bases, table)
    reading = cocotb.start_soon(serve_corrections(dut, table))
    dut.loaded.value = 0
    loading = cocotb.start_soon(load_after(dut, random.choice(delays)))
    results = results_of(arch, layer, logits, bases)
    cocotb.start_soon(send(dut, "results", result_layout(arch), results, PATTERNS[idle]))
    done: list[int] = []
    counting = cocotb.start_soon(count_jobs(dut, done))
    out = await receive(dut, "routes", route_layout(arch), len(routes), PATTERNS[pressure])
    counting.cancel()
    reading.cancel()
    loading.cancel()
    for number, (got, want) in enumerate(zip(out, routes, strict=True)):
        assert got == want, f"route {number} of {layer}"
    entries = len(routes) // layer["tokens"]
    assert done == [entries * size for size in even_parts(layer["tokens"], layer["slots"])]


async def load_after(dut: Any, cycles: int) -> None:
    """The table can be read before the job is stored, or long after."""
    await ClockCycles(dut.clk, cycles)
    dut.loaded.value = 1


async def count_jobs(dut: Any, done: list[int]) -> None:
    """Append the routes of each job when it is done."""
    routes = 0
    while True:
        await ReadOnly()
        routes += int(dut.routes__valid.value) and int(dut.routes__ready.value)
        if int(dut.job_done.value):
            done.append(routes)
            routes = 0
        await RisingEdge(dut.clk)


async def check_random(dut: Any, idle: str = "always", pressure: str = "always", **given: int) -> None:
    layer = random_layer(bench_arch(), **given)
    bases = [random.randint(-40, 40) for _ in range(layer["tokens"])]
    await check(dut, layer, random_logits(bench_arch(), layer), bases, idle, pressure)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=list(PATTERNS), pressure=list(PATTERNS))
async def random_batches(dut: Any, idle: str, pressure: str) -> None:
    """Batches of different shapes follow each other without a reset."""
    await start(dut)
    for _ in range(8):
        await check_random(dut, idle, pressure)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_most_tokens(dut: Any) -> None:
    await start(dut)
    for slots in {1, bench_arch().slots}:
        await check_random(dut, experts=2, tokens=bench_arch().max_tokens, slots=slots)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(normalise=[0, 1], gated=[0, 1])
async def every_expert_is_chosen(dut: Any, normalise: int, gated: int) -> None:
    await start(dut)
    count = min(bench_arch().max_experts, bench_arch().max_top_k)
    if count < 2:
        return
    for experts in (2, count):
        shared = {"shared_gate": gated, "shared_blocks": gated, "group_size": 0}
        await check_random(dut, experts=experts, top_k=experts, normalise=normalise, **shared)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(value=[0, 1, -1, LARGEST, -LARGEST])
async def equal_logits(dut: Any, value: int) -> None:
    """Every choice is a tie; the total of the most experts that the unit can have."""
    await start(dut)
    for normalise in (0, 1):
        layer = random_layer(bench_arch(), experts=bench_arch().max_experts, shared_gate=0, normalise=normalise)
        words = layer["tokens"], groups_of(bench_arch(), layer) * bench_arch().columns
        await check(dut, layer, np.full(words, value), [0] * layer["tokens"])


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(exponent=[-2048, -300, -69, -68, -67, -50, -20, -1, 0, 5, 6, 7, 100, 2047])
async def far_exponents(dut: Any, exponent: int) -> None:
    """Arguments that vanish, that saturate, and the steps between; gates at both ends of the sigmoid."""
    await start(dut)
    for base in (0, 1, -1, -1000 if exponent < 0 else 1000):
        layer = random_layer(bench_arch(), router_exponent=exponent)
        logits = random_logits(bench_arch(), layer)
        logits[0, : layer["experts"]] = [random.choice([-LARGEST - 1, LARGEST]) for _ in range(layer["experts"])]
        await check(dut, layer, logits, [base] * layer["tokens"])


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def every_piece_of_the_table(dut: Any) -> None:
    """Two experts at distances over the whole range of the exponential, and beyond."""
    await start(dut)
    for piece in range(200):
        layer = random_layer(bench_arch(), experts=2, router_exponent=-20, normalise=1, shared_gate=0)
        logits = np.zeros((layer["tokens"], groups_of(bench_arch(), layer) * bench_arch().columns), np.int64)
        for token in range(layer["tokens"]):
            logits[token, random.randrange(2)] = (piece << 26) // 190 + random.getrandbits(18)
        await check(dut, layer, logits, [0] * layer["tokens"])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_logit_a_cycle(dut: Any) -> None:
    """The cycles that the docstring promises."""
    await start(dut)
    arch = bench_arch()
    for normalise, gated in ((0, 0), (1, 0), (1, 1)):
        layer = random_layer(
            arch, experts=arch.max_experts, normalise=normalise, shared_gate=gated, shared_blocks=gated
        )
        bases = [0] * layer["tokens"]
        task = cocotb.start_soon(check(dut, layer, random_logits(arch, layer), bases, delays=(1,)))
        busy = 0
        while not task.done():
            await ReadOnly()
            busy += int(dut.busy.value)
            await ClockCycles(dut.clk, 1)
        await task
        whole = not layer.get("score", 0) and (not normalise or layer.get("correction", 0) > 0)
        scans = 1 + (layer.get("group_size", 0) > 0) + 2 * whole
        scan = scans * (layer["experts"] + 50) + 40 * whole + layer.get("kept_groups", 0) + layer["top_k"] + gated
        emit = 9 * (layer["top_k"] + gated) + 40
        jobs = len(even_parts(layer["tokens"], layer["slots"]))  # each waits for the last routes of the one before
        bound = layer["tokens"] * max(scan, emit) + jobs * emit + 20
        assert 0 < busy <= bound, f"{busy} cycles for {layer}, expected at most {bound}"


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await start(dut)
    arch = bench_arch()
    for _ in range(8):
        layer = random_layer(arch)
        results = results_of(arch, layer, random_logits(arch, layer), [0] * layer["tokens"])
        dut.layer.value = pack(layer_layout(), layer)
        dut.routes__ready.value = random.randrange(2)
        sender = cocotb.start_soon(send(dut, "results", result_layout(arch), results))
        await ClockCycles(dut.clk, random.randint(2, 300))
        sender.cancel()
        dut.results__valid.value = 0
        await reset(dut)
        await check_random(dut)
