"""Given routes: the records of any bus width become routes."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest
import torch
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import SEGMENT_ALIGN, Arch
from moe_hw.image import routes_record
from moe_hw.routes import GivenRoutes
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec
from moe_hw.twins.router import given_routes
from rtl_gen.route_reader import RouteReader
from rtl_gen.types import layer_layout, route_layout
from sim.bench.memory import serve_reads
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import PATTERNS, always, interrupt, pack, receive, start

MEMORY_LINES = 64


def sizes(data_bits: int) -> Arch:
    return Arch(columns=32, data_bits=data_bits, max_tokens=16, max_experts=64, max_top_k=5)


@pytest.mark.parametrize("data_bits", [32, 64, 512])
def test_route_reader(data_bits: int) -> None:
    run_bench(RouteReader(sizes(data_bits)), __name__, data_bits=data_bits)


def bench_arch() -> Arch:
    return sizes(int(parameter("data_bits")))


class Batch:
    """Random routes: some choices are none, some weights are zero, and those of all magnitudes occur."""

    def __init__(self, arch: Arch):
        top_k = random.randint(1, arch.max_top_k)
        shared = SharedSpec(1, gated=False) if random.randrange(2) else None
        router = RouterSpec(random.randint(max(2, top_k), arch.max_experts), top_k, score="given")
        spec = LayerSpec(1, router, ExpertSpec(1), shared)
        tokens = random.randint(1, arch.max_tokens)
        experts = torch.tensor([random.sample(range(router.experts), top_k) for _ in range(tokens)])
        experts[torch.rand(tokens, top_k) < 0.2] = -1
        weights = torch.rand(tokens, top_k, dtype=torch.float64) * 2 - 1
        weights *= 2.0 ** random.choice([0, 1, -30, -126, -140])
        weights[torch.rand(tokens, top_k) < 0.1] = 0
        given = GivenRoutes(experts, weights, torch.rand(tokens) if shared else None)
        self.record = routes_record(*given.rounded(spec, tokens)).tobytes()
        routes = given_routes(spec, tokens, given)
        self.layer = {
            "tokens": tokens, "top_k": top_k, "experts": router.experts, "shared_blocks": int(shared is not None),
            "given_routes": 1,
        }  # fmt: skip
        self.routes: list[dict[str, Any]] = []
        for token in range(tokens):
            chosen = zip(routes.experts[token], routes.mantissas[token], routes.exponents[token], strict=True)
            entries = [(int(expert), int(m), int(e)) for expert, m, e in chosen]
            if routes.shared is not None:
                entries.append((router.experts, int(routes.shared[0][token]), int(routes.shared[1][token])))
            for expert, mantissa, exponent in entries:
                weight = {"mantissa": abs(mantissa), "exponent": exponent, "negative": int(mantissa < 0)}
                self.routes.append({"token": token, "none": int(expert < 0), "weight": weight, "last": 0})
                if expert >= 0:
                    self.routes[-1]["expert"] = expert
        self.routes[-1]["last"] = 1
        self.address = random.randrange(MEMORY_LINES - len(self.record) // SEGMENT_ALIGN)
        noise = np.random.default_rng(random.getrandbits(32)).bytes
        before = noise(self.address * SEGMENT_ALIGN)
        self.memory = before + self.record + noise(MEMORY_LINES * SEGMENT_ALIGN - len(before) - len(self.record))

    async def run(self, dut: Any, stall: Any = always, pressure: Any = always, fault: bool = False) -> None:
        arch = bench_arch()
        dut.layer.value, dut.address.value = pack(layer_layout(), self.layer), self.address
        dut.entries.value = len(self.routes)
        errors = {self.address * SEGMENT_ALIGN} if fault else set()
        server = cocotb.start_soon(serve_reads(dut, arch, self.memory, stall, errors))
        try:
            dut.start.value = 1
            await RisingEdge(dut.clk)
            dut.start.value = 0
            got = await receive(dut, "routes", route_layout(arch), len(self.routes), pressure)
            for number, (have, want) in enumerate(zip(got, self.routes, strict=True)):
                assert {name: have[name] for name in want} == want, f"route {number}"
            await ClockCycles(dut.clk, 3)
            await ReadOnly()
            assert not int(dut.busy.value) and not int(dut.routes__valid.value)
            assert bool(dut.error.value) == fault
            await RisingEdge(dut.clk)
        finally:
            server.cancel()


async def begin(dut: Any) -> None:
    for name in ("start", "bursts__ready", "words__valid", "routes__ready"):
        getattr(dut, name).value = 0
    await start(dut)


@cocotb.test(timeout_time=3, timeout_unit="ms")
@cocotb.parametrize(stall=list(PATTERNS), pressure=list(PATTERNS))
async def batches_in_a_row(dut: Any, stall: str, pressure: str) -> None:
    await begin(dut)
    for number in range(6):
        await Batch(bench_arch()).run(dut, PATTERNS[stall], PATTERNS[pressure], fault=number == 3)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def routes_that_are_not_given_are_not_read(dut: Any) -> None:
    await begin(dut)
    batch = Batch(bench_arch())
    dut.layer.value, dut.start.value = pack(layer_layout(), {**batch.layer, "given_routes": 0}), 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    for _ in range(30):
        await ReadOnly()
        assert not int(dut.busy.value) and not int(dut.bursts__valid.value)
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def reset_in_flight(dut: Any) -> None:
    await begin(dut)
    for _ in range(8):
        working = cocotb.start_soon(Batch(bench_arch()).run(dut))
        await ClockCycles(dut.clk, random.randint(1, 60))
        await interrupt(dut, working, "start", "bursts__ready", "words__valid", "routes__ready")
        await Batch(bench_arch()).run(dut, PATTERNS["sometimes"])
