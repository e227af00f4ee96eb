"""A block alone between registers, so that its speed can be measured and its ports need no pins."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

LFSR_BITS = 16
LFSR_TAPS = (0, 2, 3, 5)
"""x^16 + x^14 + x^13 + x^11 + 1, of the greatest period."""

XOR_INPUTS = 4
"""Outputs that a LUT of any family joins."""


class Probe(wiring.Component):
    """Registers around ``block``: a shift register feeds its inputs, an exclusive or gathers its outputs.

    Each bit of every input is a place of one long shift register that a linear feedback shift register fills, so that
    nothing about the inputs can be known in advance. Each bit of every output ends in a register; a tree of exclusive
    ors with a register at each level joins them. So every path starts in a register and ends in one, and what limits
    the clock is the block: no path of the probe has more than one LUT. The reset is a pin and is not measured.

    Parameters
    ----------
    block : Component
        The block under measurement.

    Members
    -------
    o : Out(1)
        Depends on all outputs of the block.

    Attributes
    ----------
    repeated : dict
        Those of the block.
    """

    def __init__(self, block: wiring.Component):
        self.block = block
        self.repeated = getattr(block, "repeated", {})
        super().__init__({"o": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.block = self.block
        inputs, outputs = [], []
        for _, member, value in self.block.signature.flatten(self.block):
            (inputs if member.flow is wiring.In else outputs).append(value)

        lfsr = Signal(LFSR_BITS, init=1)
        m.d.sync += lfsr.eq(Cat(lfsr[1:], Cat(*(lfsr[tap] for tap in LFSR_TAPS)).xor()))
        feed = Signal(sum(len(value) for value in map(Cat, inputs)))
        m.d.sync += feed.eq(Cat(lfsr[0], feed))
        offset = 0
        for value in map(Cat, inputs):
            m.d.comb += value.eq(feed[offset : offset + len(value)])
            offset += len(value)

        level = Signal(sum(len(value) for value in map(Cat, outputs)), name="captured", reset_less=True)
        m.d.sync += level.eq(Cat(outputs))
        while len(level) > 1:
            joined = Signal(-(-len(level) // XOR_INPUTS), name=f"joined_{len(level)}", reset_less=True)
            groups = (level[start : start + XOR_INPUTS] for start in range(0, len(level), XOR_INPUTS))
            m.d.sync += joined.eq(Cat(*(group.xor() for group in groups)))
            level = joined
        m.d.comb += self.o.eq(level)
        return m
