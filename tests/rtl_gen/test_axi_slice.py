"""The register slices: data pass whole and in order, whatever pauses, and addresses beside them."""

from __future__ import annotations

import random

import cocotb
import pytest
from amaranth.lib.wiring import Out
from cocotb.triggers import ReadOnly, RisingEdge

from moe_hw.arch import Arch
from rtl_gen.axi_slice import AxiSlice
from rtl_gen.bus import AXI4Read, AXI4Write
from sim.bench import streams
from sim.bench.runner import parameter, run_bench

ARCH = Arch(columns=4)
HALVES = {"read": AXI4Read(ARCH), "write": AXI4Write(ARCH)}
DATA = {"read": ("r", ("rid", "rdata", "rresp", "rlast")), "write": ("w", ("wdata", "wstrb", "wlast"))}


def ends(half: str) -> tuple[str, str]:
    """Where data come from and where they go."""
    return ("slave", "master") if half == "read" else ("master", "slave")


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS), stall=list(streams.PATTERNS))
async def data_arrive_in_order(dut, idle, stall):
    half = parameter("half")
    channel, names = DATA[half]
    source, sink = ends(half)
    valid, ready = getattr(dut, f"{source}__{channel}valid"), getattr(dut, f"{sink}__{channel}ready")
    valid.value = ready.value = 0
    await streams.start(dut)
    words = [{name: random.getrandbits(len(getattr(dut, f"{source}__{name}"))) for name in names} for _ in range(60)]
    offers, takes = streams.PATTERNS[idle](), streams.PATTERNS[stall]()
    sent, got, offered = 0, [], False
    while len(got) < len(words):
        offered = sent < len(words) and (offered or next(offers))
        valid.value, ready.value = int(offered), int(next(takes))
        if offered:
            for name in names:
                getattr(dut, f"{source}__{name}").value = words[sent][name]
        await ReadOnly()
        if offered and int(getattr(dut, f"{source}__{channel}ready").value):
            sent, offered = sent + 1, False
        if int(getattr(dut, f"{sink}__{channel}valid").value) and int(ready.value):
            got.append({name: int(getattr(dut, f"{sink}__{name}").value) for name in names})
        await RisingEdge(dut.clk)
    assert got == words


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_rest_passes_in_the_same_cycle(dut):
    half = parameter("half")
    channel, names = DATA[half]
    await streams.start(dut)
    others = [name for name in HALVES[half].members if name not in (*names, f"{channel}valid", f"{channel}ready")]
    assert len(others) >= 7
    for name in others * 3:
        source, sink = ("master", "slave") if is_out(half, name) else ("slave", "master")
        signal = getattr(dut, f"{source}__{name}")
        signal.value = value = random.getrandbits(len(signal))
        await ReadOnly()
        assert int(getattr(dut, f"{sink}__{name}").value) == value, name
        await RisingEdge(dut.clk)


def is_out(half: str, name: str) -> bool:
    """Whether it goes from master to slave."""
    return HALVES[half].members[name].flow is Out


@pytest.mark.parametrize("half", list(HALVES))
def test_axi_slice(half: str) -> None:
    run_bench(AxiSlice(HALVES[half]), __name__, half=half)
