"""The delay line against a queue, and that a reset empties it."""

import random

import cocotb
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from rtl_gen.delay import Delay
from sim.bench import streams
from sim.bench.runner import parameter, run_bench


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def delays_and_forgets(dut):
    cycles = int(parameter("cycles"))
    dut.i_valid.value = 0
    await streams.start(dut)
    for _ in range(2):
        sent: list[int | None] = [None] * cycles
        for _ in range(5 * cycles):
            value = random.getrandbits(16) if random.random() < 0.7 else None
            sent.append(value)
            dut.i_valid.value, dut.i.value = int(value is not None), value or 0
            await ReadOnly()
            want = sent[-1 - cycles]
            assert int(dut.o_valid.value) == int(want is not None)
            assert want is None or int(dut.o.value) == want
            await RisingEdge(dut.clk)
        dut.i_valid.value = 0
        await streams.reset(dut)


@pytest.mark.filterwarnings("ignore:.*created but never used")
def test_arguments() -> None:
    with pytest.raises(ValueError, match="cycles: expected at least 3, got 2"):
        Delay(16, 2)


@pytest.mark.parametrize("cycles", [3, 33])
def test_delay(cycles: int) -> None:
    run_bench(Delay(16, cycles), __name__, cycles=cycles)
