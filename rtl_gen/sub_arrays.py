"""All sub-arrays, side by side in lockstep: one array with as many ports for weights as there are channels."""

from __future__ import annotations

from amaranth.hdl import Cat, Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from moe_hw.arch import Arch
from rtl_gen.bus import burst_layout, word_layout
from rtl_gen.emit import instance
from rtl_gen.sub_array import SubArray, array_members
from rtl_gen.types import result_layout, segment_layout


class SubArrays(wiring.Component):
    """Deals the columns of a group to ``channels`` sub-arrays, in equal parts: the first ones to the first.

    Every sub-array reads its share of a segment, at the same place of its own channel. They work in the same cycle on
    the same vector: a plane is loaded when all have theirs, so that the slowest channel sets the pace.

    Latency and throughput: those of ``SubArray``.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    base, segments, beat_ready, beat_pop, clear, error, waiting, command, x_write, x_address, x, tag_valid, tag : as in
        ``SubArray``, but ``base`` in units of 64 bytes of the whole memory.
    bursts_0 …, words_0 … : a pair for each channel, with addresses within it
    results : Out(stream of result_layout(arch))

    Attributes
    ----------
    repeated : dict
        Modules to emit once, by Verilog name.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        sub_array = SubArray(arch.sub_array)
        self.repeated = {"moe_sub_array": sub_array, **sub_array.repeated}
        ports = {}
        for channel in range(arch.channels):
            ports[f"bursts_{channel}"] = Out(stream.Signature(burst_layout(arch.sub_array)))
            ports[f"words_{channel}"] = In(stream.Signature(word_layout(arch)))
        super().__init__(
            {
                **array_members(arch),
                **ports,
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sub_array = self.repeated["moe_sub_array"]
        parts = [sub_array.signature.create(path=(f"part_{n}",)) for n in range(self.arch.channels)]
        segments_taken = self.segments.valid & self.segments.ready
        results_taken = self.results.valid & self.results.ready
        for channel, part in enumerate(parts):
            bursts, words = getattr(self, f"bursts_{channel}"), getattr(self, f"words_{channel}")
            m.d.comb += [
                part.base.eq(self.base >> exact_log2(self.arch.channels)),
                part.segments.valid.eq(segments_taken),
                part.results.ready.eq(results_taken),
                bursts.payload.eq(part.bursts.payload),
                bursts.valid.eq(part.bursts.valid),
                part.bursts.ready.eq(bursts.ready),
                part.words.payload.eq(words.payload),
                part.words.valid.eq(words.valid),
                words.ready.eq(part.words.ready),
            ]
            for name, _ in segment_layout(self.arch):
                m.d.comb += part.segments.payload[name].eq(self.segments.payload[name])
            for name in ("beat_pop", "clear", "command", "x_write", "x_address", "x", "tag_valid", "tag"):
                m.d.comb += getattr(part, name).eq(getattr(self, name))
            m.submodules[f"sub_array_{channel}"] = instance("moe_sub_array", sub_array.signature, part)

        first = parts[0].results
        m.d.comb += [
            self.segments.ready.eq(Cat(part.segments.ready for part in parts).all()),
            self.beat_ready.eq(Cat(part.beat_ready for part in parts).all()),
            self.error.eq(Cat(part.error for part in parts).any()),
            self.waiting.eq(Cat(part.waiting for part in parts).any()),
            self.results.valid.eq(first.valid),  # in lockstep, all the same
            self.results.payload.acc.as_value().eq(Cat(part.results.payload.acc.as_value() for part in parts)),
        ]
        for name, _ in result_layout(self.arch):
            if name != "acc":
                m.d.comb += self.results.payload[name].eq(first.payload[name])
        return m
