"""From the decision to multiply a vector to the array's command and the accumulators' tag."""

from __future__ import annotations

from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import EXP_BITS, Arch
from rtl_gen.accumulate import SHIFT_MAX, TAG_LEAD, tag_layout
from rtl_gen.array import LATENCY
from rtl_gen.delay import Delay
from rtl_gen.plane_loader import plane_layout
from rtl_gen.row import command_layout
from rtl_gen.types import slot_layout
from rtl_gen.vector_buffer import ExponentRead

COMMAND_STAGE = 3
"""Pipeline stage, counted from the decision to issue, in which the command enters the array."""

TAG_STAGE = 6
"""Stage in which the tag is complete."""


def vector_layout(arch: Arch) -> data.StructLayout:
    """A vector to multiply.

    ``result`` is without the slot's contents and the exponents. The vectors lie in ``half`` of the vector buffer,
    ``stride`` blocks apart; the block is number ``block`` of its vector, or ``lower`` further for a lower half.
    ``right`` is the accumulator's shift, but for the exponents' part; the rest is the tag's.
    """
    tag = tag_layout(arch)
    names = ("result", "first", "complete", "scale_index", "scale_pop")
    place = {"half": 1, "stride": 11, "block": 10, "lower": 10}
    return data.StructLayout({**{name: tag[name].shape for name in names}, **place, "right": 6})


class VectorPipeline(wiring.Component):
    """Looks up where vectors lie and what their exponents are.

    Latency: ``COMMAND_STAGE`` cycles to the command, ``COMMAND_STAGE`` and the array's ``LATENCY`` to the sums, to
    which the tag has a lead of ``TAG_LEAD``; throughput: a vector a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    issue : In(1), vector : In(vector_layout(arch))
        Multiply it.
    swap, decode : In(1), plane : In(plane_layout(arch))
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
                "issue": In(1),
                "vector": In(vector_layout(arch)),
                "swap": In(1),
                "decode": In(1),
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
        stages = [self.vector] + [Signal(vector_layout(arch), name=f"stage_{n}") for n in range(1, TAG_STAGE)]
        for earlier, later in pairwise(stages):
            m.d.sync += later.eq(earlier)

        # ---- stages 0 to 2: where the vector lies ----
        m.d.sync += stages[2].result.of.eq(self.slot)
        address_bits = bits_for(arch.vector_blocks - 1)
        vector_offset = Signal(address_bits - 1)
        offset = Signal(address_bits - 1)
        lower = Signal(10)
        address = Signal(address_bits)
        exponent_address = Signal(address_bits)
        upper_place = (vector_offset + offset)[: address_bits - 1]
        m.d.sync += [
            vector_offset.eq(stages[1].result.slot * stages[1].stride),
            offset.eq(stages[1].block),
            lower.eq(stages[1].lower),
            exponent_address.eq(Cat(upper_place, stages[2].half)),
            address.eq(Cat((upper_place + lower)[: address_bits - 1], stages[2].half)),
        ]

        # ---- stage 3: the command; planes and swaps keep their distance to the vectors ----
        plane, swap, decode = self.plane, self.swap, self.decode
        for stage in range(1, COMMAND_STAGE + 1):
            later_plane = Signal(plane_layout(arch), name=f"plane_{stage}")
            later_swap, later_decode = Signal(name=f"swap_{stage}"), Signal(name=f"decode_{stage}")
            m.d.sync += [later_plane.eq(plane), later_swap.eq(swap), later_decode.eq(decode)]
            plane, swap, decode = later_plane, later_swap, later_decode
        m.d.comb += [
            self.command.load.eq(plane.load),
            self.command.load_first.eq(plane.first),
            self.command.load_signed.eq(plane.signed),
            self.command.plane_address.eq(plane.address),
            self.command.swap.eq(swap),
            self.command.decode.eq(decode),
            self.command.x_address.eq(address),
        ]

        # ---- stages 3 to 6: the exponents' part of the shift; what block RAM answers has a stage of its own ----
        m.d.comb += [
            self.exponents.address.eq(exponent_address),
            self.exponents.token.eq(stages[3].result.of.token),
            self.exponents.slot.eq(stages[3].result.slot),
            self.exponents.half.eq(stages[3].half),
        ]
        vector_exponent = Signal.like(self.exponents.vector_exponent)
        block_exponent = Signal.like(self.exponents.block_exponent)
        token_exponent = Signal.like(self.exponents.token_exponent)
        below = Signal(EXP_BITS + 1)
        tag = Signal(tag_layout(arch))
        m.d.comb += below.eq(vector_exponent - block_exponent)
        m.d.sync += [
            vector_exponent.eq(self.exponents.vector_exponent),
            block_exponent.eq(self.exponents.block_exponent),
            token_exponent.eq(self.exponents.token_exponent),
            tag.result.eq(stages[5].result),
            tag.result.base_exponent.eq(vector_exponent),
            tag.result.token_exponent.eq(token_exponent),
            tag.first.eq(stages[5].first),
            tag.complete.eq(stages[5].complete),
            tag.scale_index.eq(stages[5].scale_index),
            tag.scale_pop.eq(stages[5].scale_pop),
            tag.shift.eq(stages[5].right + Mux(below > SHIFT_MAX, SHIFT_MAX, below)),
        ]
        valid = Signal(TAG_STAGE)
        m.d.sync += valid.eq(Cat(self.issue, valid))
        m.submodules.delay = delay = Delay(tag_layout(arch), COMMAND_STAGE + LATENCY - TAG_STAGE - TAG_LEAD)
        m.d.comb += [
            delay.i_valid.eq(valid[-1]),
            delay.i.eq(tag),
            self.tag_valid.eq(delay.o_valid),
            self.tag.eq(delay.o),
        ]
        return m
