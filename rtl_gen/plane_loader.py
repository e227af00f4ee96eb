"""Loads the bit planes of the next pass into the array's shadow codes."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import PLANES_PER_PASS, Arch


def plane_layout(arch: Arch) -> data.StructLayout:
    """A load of one plane; ``first`` and ``signed`` are meaningful with ``load``.

    ``first`` marks a pass's most significant plane, ``signed`` the planes of a tile's first pass.
    """
    return data.StructLayout({"load": 1, "first": 1, "signed": 1, "address": bits_for(arch.expert_beats - 1)})


class PlaneLoader(wiring.Component):
    """Takes the four planes of each pass from the expert buffer, a ring, as soon as the pass before is swapped in.

    Latency: none from ``swap`` to the first plane; throughput: a plane a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    swap : In(1)
        The loaded codes become the active ones in this cycle. Only when ``full``.
    last_pass : In(1)
        Of the pass that is swapped in: the next one is of another tile.
    full : Out(1)
        The shadow codes are complete.
    beat_ready : In(1), beat_pop : Out(1)
        A plane beat lies in the expert buffer; it is taken in this cycle.
    plane : Out(plane_layout(arch))
        The load of this cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "swap": In(1),
                "last_pass": In(1),
                "full": Out(1),
                "beat_ready": In(1),
                "beat_pop": Out(1),
                "plane": Out(plane_layout(arch)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        index = Signal(range(PLANES_PER_PASS))
        address = Signal.like(self.plane.address)
        next_signed = Signal(init=1)
        load = self.plane.load
        m.d.comb += [
            load.eq((~self.full | self.swap) & self.beat_ready),
            self.beat_pop.eq(load),
            self.plane.first.eq(index == 0),
            self.plane.signed.eq(Mux(self.swap, self.last_pass, next_signed)),
            self.plane.address.eq(address),
        ]
        with m.If(self.swap):
            m.d.sync += [self.full.eq(0), next_signed.eq(self.last_pass)]
        with m.If(load):
            m.d.sync += [index.eq(index + 1), address.eq(address + 1)]
            with m.If(index == PLANES_PER_PASS - 1):
                m.d.sync += self.full.eq(1)
        return m
