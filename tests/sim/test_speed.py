"""The C++ runner against the cocotb bench of the same accelerator, on the same batch, in one run.

Seconds are the process's own, so that other processes do not matter."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import cocotb
import pytest
import torch

from boards import load_board
from host.driver import Device
from host.transports.sim import open_board
from moe_hw.layer import random_layer
from moe_hw.quantised import QuantisedLayer
from rtl_gen.accelerator import Accelerator
from sim.bench import streams
from sim.bench.runner import parameter, run_bench
from tests.rtl_gen.test_accelerator import SPECS, Bench, sizes

SIZES = {"columns": 8, "data_bits": 32, "lanes": 1}
TOKENS, SECONDS = 3, 5
LEAST_RATIO = 10


def layer() -> QuantisedLayer:
    return QuantisedLayer(random_layer(SPECS[2], seed=1))


def batch() -> torch.Tensor:
    return torch.randn(TOKENS, SPECS[2].hidden, generator=torch.Generator().manual_seed(2))


@cocotb.test(timeout_time=200, timeout_unit="ms")
async def speed(dut):
    bench = Bench(dut, streams.always)
    await bench.start()
    loaded, x = layer(), batch()
    bench.load(loaded)
    await bench.check(loaded, x)
    cycles, started = 0, time.process_time()
    while time.process_time() < started + SECONDS:
        await bench.submit(loaded, x)
        await bench.finish()
        cycles += bench.completion()["cycles"]
    Path(parameter("result")).write_text(json.dumps([cycles, time.process_time() - started]))


@pytest.mark.bench
def test_the_runner_is_ten_times_as_fast_as_cocotb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = sizes(**SIZES)
    result = tmp_path / "result"
    run_bench(Accelerator(arch), __name__, "speed", **SIZES, result=result)
    cycles, seconds = json.loads(result.read_text())
    slow = cycles / seconds

    board = dataclasses.replace(load_board("ulx3s-85f"), accelerator=arch.as_dict())
    with Device(open_board(board)) as device:
        handle = device.load(layer())
        cycles, started = 0, time.process_time()
        while time.process_time() < started + SECONDS:
            report = handle(batch()).report
            assert report is not None
            cycles += report.cycles
        fast = cycles / (time.process_time() - started)
    with capsys.disabled():
        print(f"\nC++ runner {fast:,.0f} cycles/s, cocotb {slow:,.0f} cycles/s: {fast / slow:.1f} times as fast")
    assert fast >= LEAST_RATIO * slow
