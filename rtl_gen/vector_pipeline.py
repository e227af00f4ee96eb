"""From the decision to multiply a vector to the array's command and the accumulators' tag."""

from __future__ import annotations

from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import EXP_BITS, Arch
from rtl_gen.accumulate import SHIFT_MAX, tag_layout
from rtl_gen.array import LATENCY
from rtl_gen.delay import Delay
from rtl_gen.plane_loader import plane_layout
from rtl_gen.row import command_layout
from rtl_gen.token_buffer import ExponentRead
from rtl_gen.types import Kind, layer_layout, slot_layout

COMMAND_STAGE = 3
"""Pipeline stage, counted from the decision to issue, in which the command enters the array."""

TAG_STAGE = 5
"""Stage in which the tag is complete."""


def vector_layout(arch: Arch) -> data.StructLayout:
    """A vector to multiply.

    ``result`` is without token and exponents; ``block`` and ``half`` say which part of the token or of the hidden
    vector it is; ``right`` is the accumulator's shift, but for the exponents' part; the rest is the tag's.
    """
    tag = tag_layout(arch)
    names = ("result", "first", "complete", "scale_index", "scale_pop")
    return data.StructLayout({**{name: tag[name].shape for name in names}, "block": 10, "half": 1, "right": 6})


class VectorPipeline(wiring.Component):
    """Looks up where vectors lie and what their exponents are.

    Latency: ``COMMAND_STAGE`` cycles to the command, ``COMMAND_STAGE`` and the array's ``LATENCY`` to the tag;
    throughput: a vector a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout()), blocks : In(10)
        The layer, and the blocks of a vector in this phase, until a cycle after its last vector.
    issue : In(1), vector : In(vector_layout(arch))
        Multiply it.
    swap : In(1), plane : In(plane_layout(arch))
        What the command does to the codes, and that in cycles without a vector, too.
    slot : In(slot_layout(arch))
        The slot of the vector a cycle before.
    exponents : Out(ExponentRead(arch))
    command : Out(command_layout(arch))
    tag_valid : Out(1), tag : Out(tag_layout(arch))
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "blocks": In(10),
                "issue": In(1),
                "vector": In(vector_layout(arch)),
                "swap": In(1),
                "plane": In(plane_layout(arch)),
                "slot": In(slot_layout(arch)),
                "exponents": Out(ExponentRead(arch)),
                "command": Out(command_layout(arch)),
                "tag_valid": Out(1),
                "tag": Out(tag_layout(arch)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer
        stages = [self.vector] + [Signal(vector_layout(arch), name=f"stage_{n}") for n in range(1, TAG_STAGE)]
        for earlier, later in pairwise(stages):
            m.d.sync += later.eq(earlier)

        # ---- stages 0 to 2: where the vector lies ----
        token = self.slot.token
        m.d.sync += stages[2].result.token.eq(token)
        is_down = stages[1].result.kind == Kind.DOWN
        inputs = Signal(bits_for(arch.token_blocks))  # blocks of one half of the inputs
        m.d.sync += inputs.eq(layer.tokens * layer.hidden_blocks)
        offset = Signal(bits_for(arch.token_blocks - 1))
        half_offset = Signal.like(offset)
        vector_offset = Signal.like(offset)
        address = Signal.like(offset)
        exponent_address = Signal.like(offset)
        m.d.sync += [
            vector_offset.eq(Mux(is_down, stages[1].result.slot, token) * self.blocks),
            offset.eq(Mux(is_down, inputs << 1, 0) + stages[1].block),
            half_offset.eq(Mux(stages[1].half, inputs, 0)),
            exponent_address.eq(vector_offset + offset),
            address.eq(vector_offset + offset + half_offset),
        ]

        # ---- stage 3: the command; planes and swaps keep their distance to the vectors ----
        plane, swap = self.plane, self.swap
        for stage in range(1, COMMAND_STAGE + 1):
            later_plane = Signal(plane_layout(arch), name=f"plane_{stage}")
            later_swap = Signal(name=f"swap_{stage}")
            m.d.sync += [later_plane.eq(plane), later_swap.eq(swap)]
            plane, swap = later_plane, later_swap
        m.d.comb += [
            self.command.load.eq(plane.load),
            self.command.load_first.eq(plane.first),
            self.command.load_signed.eq(plane.signed),
            self.command.plane_address.eq(plane.address),
            self.command.swap.eq(swap),
            self.command.x_address.eq(address),
        ]

        # ---- stages 3 to 5: the exponents' part of the shift ----
        m.d.comb += [
            self.exponents.address.eq(exponent_address),
            self.exponents.token.eq(stages[3].result.token),
            self.exponents.slot.eq(stages[3].result.slot),
            self.exponents.hidden.eq(stages[3].result.kind == Kind.DOWN),
        ]
        below = Signal(EXP_BITS + 1)
        tag = Signal(tag_layout(arch))
        m.d.comb += below.eq(self.exponents.vector_exponent - self.exponents.block_exponent)
        m.d.sync += [
            tag.result.eq(stages[4].result),
            tag.result.base_exponent.eq(self.exponents.vector_exponent),
            tag.result.token_exponent.eq(self.exponents.token_exponent),
            tag.first.eq(stages[4].first),
            tag.complete.eq(stages[4].complete),
            tag.scale_index.eq(stages[4].scale_index),
            tag.scale_pop.eq(stages[4].scale_pop),
            tag.shift.eq(stages[4].right + Mux(below > SHIFT_MAX, SHIFT_MAX, below)),
        ]
        valid = Signal(TAG_STAGE)
        m.d.sync += valid.eq(Cat(self.issue, valid))
        m.submodules.delay = delay = Delay(tag_layout(arch), COMMAND_STAGE + LATENCY - TAG_STAGE)
        m.d.comb += [
            delay.i_valid.eq(valid[-1]),
            delay.i.eq(tag),
            self.tag_valid.eq(delay.o_valid),
            self.tag.eq(delay.o),
        ]
        return m
