"""The pads of an SDRAM in simulation: what the FPGA has between its fabric and its pins."""

from __future__ import annotations

from types import SimpleNamespace

from amaranth.hdl import Module
from amaranth.lib import data, io, wiring
from amaranth.lib.wiring import In, Out

from boards import Memory
from rtl_gen.sdram_pins import SdramPads, SdramPins

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
