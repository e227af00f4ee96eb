"""Receiver and transmitter at ratios that are no whole numbers, and at lines that are a little off."""

import random

import cocotb
import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.triggers import ClockCycles, FallingEdge, ReadOnly, RisingEdge, Timer
from cocotb.utils import get_sim_time

from rtl_gen.uart import FEWEST_CLOCKS, UartReceiver, UartTransmitter, bit_ratio
from sim.bench import streams
from sim.bench.runner import parameter, run_bench

CLOCK_NS = 10
DRIFT = 0.02
"""Share that the two ends of a line may differ by."""


class Uart(wiring.Component):
    """Receiver and transmitter side by side."""

    def __init__(self, clock_hz: int, baud: int):
        self.receiver, self.transmitter = UartReceiver(clock_hz, baud), UartTransmitter(clock_hz, baud)
        super().__init__(
            {
                "rx": In(1), "tx": Out(1), "valid": Out(1), "data": Out(8), "bytes": In(stream.Signature(8)),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.receiver = receiver = self.receiver
        m.submodules.transmitter = transmitter = self.transmitter
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.valid.eq(receiver.valid),
            self.data.eq(receiver.data),
            self.tx.eq(transmitter.tx),
        ]
        connect(m, flipped(self.bytes), transmitter.bytes)
        return m


def bit_ps() -> float:
    return CLOCK_NS * 1000 * float(parameter("clocks"))


async def line_send(dut, data: bytes, drift: float = 0.0, gaps: bool = False) -> None:
    """Bytes with edges at their exact times, not at those of the clock."""
    due = get_sim_time("ps") + random.randrange(1, CLOCK_NS * 1000)
    bit = bit_ps() / (1 + drift)
    for byte in data:
        for level in (0, *(byte >> at & 1 for at in range(8)), 1):
            dut.rx.value = level
            due += bit
            await Timer(max(1, round(due - get_sim_time("ps"))), "ps")
        if gaps and random.random() < 0.5:
            due += random.random() * 3 * bit
            await Timer(max(1, round(due - get_sim_time("ps"))), "ps")


async def received(dut, out: bytearray) -> None:
    while True:
        await RisingEdge(dut.clk)
        if int(dut.valid.value):
            out.append(int(dut.data.value))


async def begin(dut) -> bytearray:
    dut.rx.value, dut.bytes__valid.value = 1, 0
    await streams.start(dut)
    out = bytearray()
    cocotb.start_soon(received(dut, out))
    await ClockCycles(dut.clk, 8)
    return out


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(drift=[-DRIFT, 0.0, DRIFT], gaps=[False, True])
async def received_bytes(dut, drift, gaps):
    out = await begin(dut)
    data = bytes((0, 255, 0x55, 0xAA)) + random.randbytes(60)
    await line_send(dut, data, drift, gaps)
    await ClockCycles(dut.clk, 20)
    assert out == data


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def glitches_and_breaks_are_no_bytes(dut):
    out = await begin(dut)
    clocks = float(parameter("clocks"))
    for _ in range(10):
        dut.rx.value = 0
        await Timer(round(bit_ps() * 0.3), "ps")
        dut.rx.value = 1
        await ClockCycles(dut.clk, round(12 * clocks))
    assert out == b""
    dut.rx.value = 0
    await ClockCycles(dut.clk, round(40 * clocks))
    dut.rx.value = 1
    await ClockCycles(dut.clk, round(12 * clocks))
    assert out == b""
    await line_send(dut, b"after")
    await ClockCycles(dut.clk, 20)
    assert out == b"after"


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def sent_bytes_without_a_gap(dut):
    """Each bit is read in its middle, at the exact rate: rounding does not add up over 40 bytes."""
    await begin(dut)
    data = bytes((0, 255)) + random.randbytes(40)
    cocotb.start_soon(streams.send(dut, "bytes", 8, data))
    await FallingEdge(dut.tx)
    due = get_sim_time("ps") + CLOCK_NS * 500
    for byte in data:
        bits = []
        for at in range(10):
            await Timer(max(1, round(due + (at + 0.5) * bit_ps() - get_sim_time("ps"))), "ps")
            bits.append(int(dut.tx.value))
        assert bits == [0, *(byte >> at & 1 for at in range(8)), 1]
        due += 10 * bit_ps()


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(idle=list(streams.PATTERNS))
async def loop_back(dut, idle):
    out = await begin(dut)

    async def loop() -> None:
        while True:
            await RisingEdge(dut.clk)
            dut.rx.value = int(dut.tx.value)

    looping = cocotb.start_soon(loop())
    data = random.randbytes(30)
    await streams.send(dut, "bytes", 8, data, streams.PATTERNS[idle])
    await ClockCycles(dut.clk, round(12 * float(parameter("clocks"))) + 10)
    looping.cancel()
    assert out == data


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def latencies(dut):
    """A cycle to the start bit; half a bit and four cycles at most from the beginning of the stop bit to the byte."""
    await begin(dut)
    await RisingEdge(dut.clk)
    dut.bytes__valid.value = 1
    await RisingEdge(dut.clk)
    dut.bytes__valid.value = 0
    await ReadOnly()
    assert int(dut.tx.value) == 0
    await RisingEdge(dut.clk)
    clocks = float(parameter("clocks"))
    for _ in range(20):
        begun = get_sim_time("ps")
        sending = cocotb.start_soon(line_send(dut, b"x"))
        while not int(dut.valid.value):
            await RisingEdge(dut.clk)
        assert 9.5 * clocks <= (get_sim_time("ps") - begun) / CLOCK_NS / 1000 <= 9.5 * clocks + 5
        await sending


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def reset_in_flight(dut):
    out = await begin(dut)
    for _ in range(5):
        sending = cocotb.start_soon(streams.send(dut, "bytes", 8, random.randbytes(9)))
        working = cocotb.start_soon(line_send(dut, random.randbytes(9)))
        await ClockCycles(dut.clk, random.randint(1, 300))
        sending.cancel()
        await streams.interrupt(dut, working, "bytes__valid")
        dut.rx.value = 1
        assert int(dut.tx.value) == 1
        await ClockCycles(dut.clk, round(12 * float(parameter("clocks"))))
        out.clear()
        await line_send(dut, b"again")
        await ClockCycles(dut.clk, 20)
        assert out == b"again"


def test_uart() -> None:
    run_bench(Uart(80_000_000, 3_000_000), __name__, clocks=80 / 3)


def test_ratio_of_clock_and_baud_rate() -> None:
    assert bit_ratio(80_000_000, 3_000_000) == (3, 80)
    assert bit_ratio(FEWEST_CLOCKS * 1000, 1000) == (1, FEWEST_CLOCKS)
    for clock_hz, baud in ((FEWEST_CLOCKS * 1000 - 1, 1000), (1000, 0)):
        with pytest.raises(ValueError, match=f"at most a quarter of the clock of {clock_hz} Hz, got {baud}"):
            bit_ratio(clock_hz, baud)
