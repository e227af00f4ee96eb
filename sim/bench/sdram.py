"""The SDRAM chip at the pins of a simulated block, and the two clocks around it."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Module
from amaranth.lib import data, io, wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, Timer

from boards import Memory
from rtl_gen.sdram_pins import SdramPads, SdramPins
from sim.sdram_chip import SdramChip

SDRAM_PS = 7500
"""Period of the chip's clock: 133.3 MHz."""


INVERTED = ("cs", "ras", "cas", "we")
STRAIGHT = ("clk_en", "ba", "a", "dqm")
COMMAND = ("clk_en", "cs", "ras", "cas", "we", "ba", "a")


def pin_layout(memory: Memory) -> data.StructLayout:
    """What the pads drive, as one vector, which a bench reads at once."""
    pins = SdramPins(memory).members
    return data.StructLayout({name: pins[name].shape for name in (*COMMAND, "dqm", "dq_o", "dq_oe")})


class SimulatedPads(wiring.Component):
    """The pads with the polarity of the ULX3S, in the domain ``sync``.

    Parameters
    ----------
    memory : Memory
        The board's memory.

    Members
    -------
    pins : In(SdramPins(memory))
    pads : Out(pin_layout(memory)), dq_i : In
        The outside; ``cs``, ``ras``, ``cas`` and ``we`` are true when 0.
    """

    def __init__(self, memory: Memory):
        self.memory = memory
        super().__init__(
            {"pins": In(SdramPins(memory)), "pads": Out(pin_layout(memory)), "dq_i": In(memory.data_bits)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pins = self.pins

        ports = SimpleNamespace(
            **{name: io.SimulationPort("o", 1, invert=True, name=name) for name in INVERTED},
            **{name: io.SimulationPort("o", len(getattr(pins, name)), name=name) for name in STRAIGHT},
            dq=io.SimulationPort("io", self.memory.data_bits, name="dq"),
        )
        m.submodules.pads = pads = SdramPads(self.memory, ports)
        wiring.connect(m, wiring.flipped(pins), pads.pins)
        m.d.comb += [getattr(self.pads, name).eq(getattr(ports, name).o) for name in (*INVERTED, *STRAIGHT)]
        m.d.comb += [self.pads.dq_o.eq(ports.dq.o), self.pads.dq_oe.eq(ports.dq.oe[0]), ports.dq.i.eq(self.dq_i)]
        return m


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
