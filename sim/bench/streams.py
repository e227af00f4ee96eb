"""Sources and sinks for ``amaranth.lib.stream`` ports of a simulated block.

A layout of ``rtl_gen.types`` is passed as one packed vector; :func:`pack` and :func:`unpack` convert it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from amaranth.hdl import Shape
from amaranth.lib import data, enum
from cocotb.clock import Clock
from cocotb.task import Task
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

Pattern = Callable[[], Iterator[bool]]


def always() -> Iterator[bool]:
    """Never pauses."""
    while True:
        yield True


def sometimes(probability: float = 0.5) -> Pattern:
    """Active in a random ``probability`` of the cycles."""

    def pattern() -> Iterator[bool]:
        while True:
            yield random.random() < probability

    return pattern


def bursts(longest: int = 8) -> Pattern:
    """Active and paused for random stretches of 1 to ``longest`` cycles."""

    def pattern() -> Iterator[bool]:
        while True:
            for active in (True, False):
                for _ in range(random.randint(1, longest)):
                    yield active

    return pattern


PATTERNS: dict[str, Pattern] = {"always": always, "sometimes": sometimes(0.4), "bursts": bursts()}
"""Idle and back-pressure patterns that every bench is crossed with."""


def pack(layout: Any, value: Any) -> int:
    """Bits of ``value`` (an int, or a dict or list for structures and arrays) in ``layout``."""
    if isinstance(layout, data.Layout):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        bits = 0
        for key, item in items:
            field = layout[key]
            width = Shape.cast(field.shape).width
            bits |= (pack(field.shape, item) & ((1 << width) - 1)) << field.offset
        return bits
    return int(value.value if isinstance(value, enum.Enum) else value) & ((1 << Shape.cast(layout).width) - 1)


def unpack(layout: Any, bits: int) -> Any:
    """The inverse of :func:`pack`: dicts, lists and ints."""
    if isinstance(layout, data.ArrayLayout):
        width = Shape.cast(layout.elem_shape).width
        return [unpack(layout.elem_shape, bits >> width * index) for index in range(layout.length)]
    if isinstance(layout, data.Layout):
        return {key: unpack(field.shape, bits >> field.offset) for key, field in layout}
    shape = Shape.cast(layout)
    return unpack_signed(bits, shape.width) if shape.signed else bits & ((1 << shape.width) - 1)


def unpack_signed(bits: int, width: int) -> int:
    """The two's complement number in the low ``width`` bits."""
    bits &= (1 << width) - 1
    return bits - (1 << width) if bits >> width - 1 else bits


async def start(dut: Any, cycles: int = 3) -> None:
    """Start the clock (10 ns) and hold reset for ``cycles``."""
    Clock(dut.clk, 10, unit="ns").start()
    await reset(dut, cycles)


async def reset(dut: Any, cycles: int = 3) -> None:
    """Hold reset for ``cycles``."""
    dut.rst.value = 1
    await ClockCycles(dut.clk, cycles)
    dut.rst.value = 0


async def interrupt(dut: Any, work: Task[Any], *inputs: str) -> None:
    """Cancel ``work`` in flight, set the inputs that it drove to zero, and reset."""
    dut.rst.value = 1
    work.cancel()
    await RisingEdge(dut.clk)  # tasks that ``work`` started may drive inputs until they have been cancelled, too
    for name in inputs:
        getattr(dut, name).value = 0
    await reset(dut)


async def send(dut: Any, prefix: str, layout: Any, values: Any, pattern: Pattern = always) -> None:
    """Offer ``values`` on the stream ``prefix`` (an input of the block), pausing as ``pattern`` says."""
    valid, ready = getattr(dut, f"{prefix}__valid"), getattr(dut, f"{prefix}__ready")
    payload = getattr(dut, f"{prefix}__payload")
    active = pattern()
    valid.value = 0
    for value in values:
        while not next(active):
            await RisingEdge(dut.clk)
        payload.value = pack(layout, value)
        valid.value = 1
        while True:
            await ReadOnly()
            taken = int(ready.value)
            await RisingEdge(dut.clk)
            if taken:
                break
        valid.value = 0


async def receive(dut: Any, prefix: str, layout: Any, count: int, pattern: Pattern = always) -> list[Any]:
    """Take ``count`` values from the stream ``prefix`` (an output of the block)."""
    valid, ready = getattr(dut, f"{prefix}__valid"), getattr(dut, f"{prefix}__ready")
    payload = getattr(dut, f"{prefix}__payload")
    active = pattern()
    out: list[Any] = []
    while len(out) < count:
        enable = next(active)
        ready.value = int(enable)
        await ReadOnly()
        if enable and int(valid.value):
            out.append(unpack(layout, int(payload.value)))
        await RisingEdge(dut.clk)
    ready.value = 0
    return out
