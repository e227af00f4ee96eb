"""The serial line: eight data bits, no parity, one stop bit, at any ratio of clock and baud rate."""

from __future__ import annotations

import math

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

FRAME_BITS = 10
"""Start bit, data, stop bit."""

FEWEST_CLOCKS = 4
"""Clocks of a bit at least, so that it is sampled near its middle."""


def bit_ratio(clock_hz: int, baud: int) -> tuple[int, int]:
    """Bits and clocks in the shortest time that is a whole number of both.

    Raises:
        ValueError: the clock is too slow for the baud rate.
    """
    if baud <= 0 or clock_hz < FEWEST_CLOCKS * baud:
        raise ValueError(f"baud: expected at most a quarter of the clock of {clock_hz} Hz, got {baud}")
    divisor = math.gcd(clock_hz, baud)
    return baud // divisor, clock_hz // divisor


class BitClock(wiring.Component):
    """Ticks once a bit.

    It counts bits modulo clocks, so that their mean is exact where 80 MHz at 3 Mbaud are 26 2/3 clocks a bit.

    Parameters
    ----------
    clock_hz, baud : int
        As of ``bit_ratio``.

    Members
    -------
    run : In(1), half : In(1)
        Count; otherwise start anew, with ``half`` in the middle of a bit.
    tick : Out(1)
        The bit ends with this cycle.
    """

    def __init__(self, clock_hz: int, baud: int):
        self.step, self.period = bit_ratio(clock_hz, baud)
        super().__init__({"run": In(1), "half": In(1), "tick": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        phase = Signal(range(self.period))
        further = Signal(range(self.period + self.step))
        m.d.comb += [further.eq(phase + self.step), self.tick.eq(self.run & (further >= self.period))]
        m.d.sync += phase.eq(Mux(self.tick, further - self.period, further))
        with m.If(~self.run):
            m.d.sync += phase.eq(Mux(self.half, self.period // 2, 0))
        return m


class UartReceiver(wiring.Component):
    """Bytes from a line. A byte without its stop bit is dropped, and so is a start bit shorter than half a bit.

    Parameters
    ----------
    clock_hz, baud : int
        As of ``BitClock``.

    Members
    -------
    rx : In(1)
        The pin, in no relation to the clock.
    valid : Out(1), data : Out(8)

    Latency: half a bit and four cycles from the beginning of the stop bit; throughput: all that the line carries.
    """

    def __init__(self, clock_hz: int, baud: int):
        self._clock = BitClock(clock_hz, baud)
        super().__init__({"rx": In(1, init=1), "valid": Out(1), "data": Out(8)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.clock = clock = self._clock
        line, previous = Signal(init=1), Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, line, init=1)
        left = Signal(range(FRAME_BITS + 1))
        m.d.comb += [clock.run.eq(left != 0), clock.half.eq(1)]
        m.d.sync += [previous.eq(line), self.valid.eq(0)]
        with m.If((left == 0) & previous & ~line):
            m.d.sync += left.eq(FRAME_BITS)
        with m.If(clock.tick):
            m.d.sync += left.eq(left - 1)
            with m.If(left == 1):
                m.d.sync += self.valid.eq(line)
            with m.Elif((left == FRAME_BITS) & line):
                m.d.sync += left.eq(0)
            with m.Else():
                m.d.sync += self.data.eq(Cat(self.data[1:], line))
        return m


class UartTransmitter(wiring.Component):
    """Bytes to a line.

    Parameters
    ----------
    clock_hz, baud : int
        As of ``BitClock``.

    Members
    -------
    bytes : In(stream of 8 bits)
    tx : Out(1)

    Latency: one cycle; throughput: ten bits a byte, without a gap.
    """

    def __init__(self, clock_hz: int, baud: int):
        self._clock = BitClock(clock_hz, baud)
        super().__init__({"bytes": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.clock = clock = self._clock
        left = Signal(range(FRAME_BITS + 1))
        shift = Signal(FRAME_BITS, init=-1)
        m.d.comb += [
            clock.run.eq(left != 0),
            self.tx.eq(shift[0]),
            self.bytes.ready.eq((left == 0) | (clock.tick & (left == 1))),
        ]
        with m.If(clock.tick):
            m.d.sync += [left.eq(left - 1), shift.eq(Cat(shift[1:], Const(1)))]
        with m.If(self.bytes.valid & self.bytes.ready):
            m.d.sync += [left.eq(FRAME_BITS), shift.eq(Cat(Const(0), self.bytes.payload, Const(1)))]
        return m
