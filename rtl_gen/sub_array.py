"""A sub-array: its share of the columns, from the words of its weights to its accumulators."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import bits_for

from moe_hw.arch import ROWS, Arch
from rtl_gen.accumulate import Accumulate, tag_layout
from rtl_gen.array import Array
from rtl_gen.bus import burst_layout, word_layout
from rtl_gen.row import command_layout
from rtl_gen.streamer import Streamer
from rtl_gen.types import address_bits, result_layout, segment_layout


def array_members(arch: Arch) -> dict[str, wiring.Member]:
    """The members of one sub-array, and of all together, but for the ports of their weights."""
    return {
        "base": In(address_bits(arch)),
        "segments": In(stream.Signature(segment_layout(arch))),
        "beat_ready": Out(1),
        "beat_pop": In(1),
        "clear": In(1),
        "error": Out(1),
        "waiting": Out(1),
        "command": In(command_layout(arch)),
        "x_write": In(1),
        "x_address": In(bits_for(arch.vector_blocks - 1)),
        "x": In(data.ArrayLayout(8, ROWS)),
        "tag_valid": In(1),
        "tag": In(tag_layout(arch)),
        "results": Out(stream.Signature(result_layout(arch))),
    }


class SubArray(wiring.Component):
    """Streamer, systolic array and accumulators. Several of them work in lockstep on the same vectors.

    Latency and throughput: those of ``Streamer``, ``Array`` and ``Accumulate``. Emitted once; no output depends on an
    input of the same cycle, but for ``results``' way to ``result_taken``.

    Parameters
    ----------
    arch : Arch
        Sizes of this sub-array, ``Arch.sub_array`` of the accelerator's.

    Members
    -------
    base, segments, bursts, words, beat_ready, beat_pop, clear, error, waiting : as in ``Streamer``
    command, x_write, x_address, x : as in ``Array``
    tag_valid, tag : ``valid`` and ``tag`` of ``Accumulate``
    results : Out(stream of result_layout(arch))

    Attributes
    ----------
    repeated : dict
        Modules to emit once, by Verilog name.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        self._array = Array(arch)
        self._accumulate = Accumulate(arch)
        self.repeated = {**self._array.repeated, **self._accumulate.repeated}
        super().__init__(
            {
                **array_members(arch),
                "bursts": Out(stream.Signature(burst_layout(arch))),
                "words": In(stream.Signature(word_layout(arch))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.streamer = streamer = Streamer(self.arch)
        m.submodules.array = array = self._array
        m.submodules.accumulate = accumulate = self._accumulate
        connect(m, flipped(self.segments), streamer.segments)
        connect(m, streamer.bursts, flipped(self.bursts))
        connect(m, flipped(self.words), streamer.words)
        connect(m, streamer.scales, accumulate.scales)
        connect(m, accumulate.results, flipped(self.results))
        m.d.comb += [
            streamer.base.eq(self.base),
            streamer.beat_pop.eq(self.beat_pop),
            streamer.clear.eq(self.clear),
            self.beat_ready.eq(streamer.beat_ready),
            self.error.eq(streamer.error),
            self.waiting.eq(streamer.waiting),
            array.command.eq(self.command),
            array.plane_write.eq(streamer.plane_write),
            array.plane_address.eq(streamer.plane_address),
            array.beat.eq(streamer.beat),
            array.x_write.eq(self.x_write),
            array.x_address.eq(self.x_address),
            array.x.eq(self.x),
            accumulate.sums.eq(array.sums),
            accumulate.valid.eq(self.tag_valid),
            accumulate.tag.eq(self.tag),
        ]
        return m
