"""Loads the bit planes of the next pass into the array's shadow codes."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import PLANES_PER_PASS, Arch
from rtl_gen.types import BITS, first_planes


def plane_layout(arch: Arch) -> data.StructLayout:
    """A load of one plane; ``first`` and ``signed`` are meaningful with ``load``.

    ``first`` marks a pass's most significant plane, ``signed`` the planes of a tile's first pass.
    """
    return data.StructLayout({"load": 1, "first": 1, "signed": 1, "address": bits_for(arch.expert_beats - 1)})


class PlaneLoader(wiring.Component):
    """Takes the planes of each pass from the expert buffer, a ring, as soon as the pass before is swapped in.

    A tile's first pass has 2 to 5 planes, each other four. The planes of a matrix are loaded ahead of its job, so its
    bits come from the segments that the streamer reads.

    Latency: none from ``swap`` to the first plane; throughput: a plane a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    bits : In(stream of 5 bits)
        Bits of the codes of each matrix, in the order of their planes.
    swap : In(1)
        The loaded codes become the active ones in this cycle. Only when ``full``.
    last_pass, last_of_job : In(1)
        Of the pass that is swapped in: the next one is of another tile; of another matrix, too.
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
                "bits": In(stream.Signature(BITS)),
                "swap": In(1),
                "last_pass": In(1),
                "last_of_job": In(1),
                "full": Out(1),
                "beat_ready": In(1),
                "beat_pop": Out(1),
                "plane": Out(plane_layout(arch)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        address = Signal.like(self.plane.address)
        planes = Signal(3)  # of the pass that is loaded
        first_of_tile = Signal(3)  # planes of a tile's first pass
        loaded = Signal(3)
        is_signed = Signal()
        waiting = Signal(init=1)  # for the bits of the next matrix

        # A pass begins: of the same tile, of the next tile, or of the next matrix.
        begin, of_next_matrix, known = Signal(), Signal(), Signal()
        next_first = Signal(3)
        m.d.comb += [
            begin.eq(self.swap | waiting),
            of_next_matrix.eq(waiting | (self.last_pass & self.last_of_job)),
            known.eq(~of_next_matrix | self.bits.valid),
            self.bits.ready.eq(begin & of_next_matrix),
            next_first.eq(Mux(of_next_matrix, first_planes(self.bits.payload), first_of_tile)),
        ]
        loaded_now, signed_now = Signal(3), Signal()
        m.d.comb += [loaded_now.eq(loaded), signed_now.eq(is_signed)]
        with m.If(begin):
            m.d.comb += [loaded_now.eq(0), signed_now.eq(of_next_matrix | self.last_pass)]
            m.d.sync += [waiting.eq(~known), self.full.eq(0), loaded.eq(0)]
            with m.If(known):
                m.d.sync += [
                    planes.eq(Mux(signed_now, next_first, PLANES_PER_PASS)),
                    is_signed.eq(signed_now),
                    first_of_tile.eq(next_first),
                ]

        load = self.plane.load
        m.d.comb += [
            load.eq(self.beat_ready & Mux(begin, known, ~self.full)),
            self.beat_pop.eq(load),
            self.plane.first.eq(loaded_now == 0),
            self.plane.signed.eq(signed_now),
            self.plane.address.eq(address),
        ]
        with m.If(load):
            m.d.sync += [
                loaded.eq(loaded_now + 1),
                address.eq(address + 1),
                self.full.eq(~begin & (loaded == planes - 1)),  # no pass has one plane alone
            ]
        return m
