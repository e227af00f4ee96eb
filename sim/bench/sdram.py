"""The SDRAM chip at the pins of a simulated block, and the two clocks around it."""

from __future__ import annotations

import random
from typing import Any

from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, Timer

from boards import Memory
from sim.pads import pin_layout
from sim.sdram_chip import SdramChip

SDRAM_PS = 7500
"""Period of the chip's clock: 133.3 MHz."""


async def serve_chip(dut: Any, clock: Any, reset: Any, memory: Memory, chip: SdramChip) -> None:
    """Connect ``chip`` to ``dut.pads`` and ``dut.dq_i``, forever. Its edge is the rising one of ``clock``.

    A reset of the controller, which may come in the middle of a command, is a power-up of the chip.

    Raises:
        AssertionError: the controller breaks a rule of the chip.
    """
    fields = [(field.offset, (1 << field.width) - 1) for _, field in pin_layout(memory)]
    shown: int | None = None
    while True:
        # In the middle of a cycle: what the last edge made the chip show is there, and the next edge's pins are.
        await FallingEdge(clock)
        dut.dq_i.value = random.getrandbits(memory.data_bits) if shown is None else shown
        if int(reset.value):
            chip.reset()
            shown = None
            continue
        bits = int(dut.pads.value)
        *command, dqm, dq, driven = [bits >> offset & mask for offset, mask in fields]
        shown = chip.clock(*command, dqm, dq if driven else None)


async def start(dut: Any, fabric_ps: int = 12500) -> None:
    """Start both clocks, at a random phase, and reset both domains."""
    Clock(dut.clk, fabric_ps, unit="ps").start()
    await Timer(random.randrange(0, SDRAM_PS, 2) + 2, unit="ps")
    Clock(dut.sdram_clk, SDRAM_PS, unit="ps").start()
    await reset(dut)


async def reset(dut: Any) -> None:
    """Reset both domains."""
    dut.rst.value = dut.sdram_rst.value = 1
    await ClockCycles(dut.clk, 6)
    dut.rst.value = dut.sdram_rst.value = 0
