"""One row of the systolic array: its banks of the expert and vector buffers, and its multipliers."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import E2M1, Arch

SUM_BITS = 18
"""Bits of a partial sum: 32 products of 5 bits by 8 bits."""

CODE_BITS = 5
"""Bits of a weight slice in the array: four unsigned bits or four signed ones."""

PACK_SHIFT = 13
"""Distance of the two weights that share a multiplier: their products of 8 x 5 bits do not overlap."""


def command_layout(arch: Arch) -> data.StructLayout:
    """What a row does in a cycle. It reaches row ``r`` ``r`` cycles after row 0."""
    return data.StructLayout(
        {
            "load": 1,  # shift the plane at `plane_address` into the shadow codes
            "load_first": 1,  # it is the slice's most significant plane
            "load_signed": 1,  # and that plane is a sign
            "plane_address": bits_for(arch.expert_beats - 1),
            "decode": 1,  # those that become active are E2M1 elements
            "swap": 1,  # the shadow codes become the active ones, for this cycle's vector on
            "x_address": bits_for(arch.vector_blocks - 1),
        }
    )


class Row(wiring.Component):
    """One row of processing elements, two columns to a multiplier.

    A command reads the expert bank and the vector bank in its first cycle, moves planes and codes in the second,
    multiplies in the third and adds to the partial sums from the row above in the fourth.
    All members are plain signals, so that the row can be emitted once and instantiated by name.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    command : In(command_layout(arch)), next_command : Out(command_layout(arch))
        The command, and the same a cycle later for the row below.
    sums, next_sums : In, Out(columns x 18 bits)
        Partial sums from the row above and to the row below. Latency from command to ``next_sums``: 4 cycles;
        throughput: a vector element a cycle.
    plane_write : In(1), plane_address : In, plane : In(columns)
        Write port of the expert bank.
    x_write : In(1), x_address : In, x : In(8)
        Write port of the vector bank.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "command": In(command_layout(arch)),
                "next_command": Out(command_layout(arch)),
                "sums": In(arch.columns * SUM_BITS),
                "next_sums": Out(arch.columns * SUM_BITS),
                "plane_write": In(1),
                "plane_address": In(bits_for(arch.expert_beats - 1)),
                "plane": In(arch.columns),
                "x_write": In(1),
                "x_address": In(bits_for(arch.vector_blocks - 1)),
                "x": In(8),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch

        m.submodules.expert_bank = expert_bank = Memory(shape=arch.columns, depth=arch.expert_beats, init=[])
        plane_write = expert_bank.write_port()
        plane_read = expert_bank.read_port()
        m.submodules.vector_bank = vector_bank = Memory(shape=8, depth=arch.vector_blocks, init=[])
        x_write = vector_bank.write_port()
        x_read = vector_bank.read_port()
        m.d.comb += [
            plane_write.en.eq(self.plane_write),
            plane_write.addr.eq(self.plane_address),
            plane_write.data.eq(self.plane),
            plane_read.addr.eq(self.command.plane_address),
            x_write.en.eq(self.x_write),
            x_write.addr.eq(self.x_address),
            x_write.data.eq(self.x),
            x_read.addr.eq(self.command.x_address),
        ]
        m.d.sync += self.next_command.eq(self.command)

        load = Signal()
        first = Signal()
        is_signed = Signal()
        decode = Signal()
        swap = Signal()
        m.d.sync += [
            load.eq(self.command.load),
            first.eq(self.command.load_first),
            is_signed.eq(self.command.load_signed),
            decode.eq(self.command.decode),
            swap.eq(self.command.swap),
        ]

        x = Signal(signed(8))
        m.d.sync += x.eq(x_read.data)
        for low in range(0, arch.columns, 2):
            codes = []
            for column in (low, low + 1):
                shadow = Signal(signed(CODE_BITS), name=f"shadow_{column}")
                bit = plane_read.data[column]
                with m.If(load):
                    sign = (bit & is_signed).replicate(CODE_BITS - 1)
                    m.d.sync += shadow.eq(Mux(first, Cat(bit, sign), Cat(bit, shadow[: CODE_BITS - 1])))
                element = Signal(signed(CODE_BITS), name=f"element_{column}")
                with m.Switch(shadow[: CODE_BITS - 1]):
                    for number, magnitude in enumerate(E2M1):
                        with m.Case(number):
                            m.d.comb += element.eq(magnitude)
                        with m.Case(number | len(E2M1)):
                            m.d.comb += element.eq(-magnitude)
                codes.append(Mux(decode, element, shadow))
            weights = Signal(signed(PACK_SHIFT + CODE_BITS), name=f"weights_{low}")
            with m.If(swap):
                m.d.sync += weights.eq((codes[1] << PACK_SHIFT) + codes[0])
            product = Signal(signed(PACK_SHIFT + CODE_BITS + 8), name=f"product_{low}")
            m.d.sync += product.eq(weights * x)
            # The upper product lost one if the lower one is negative.
            products = [product[:PACK_SHIFT].as_signed(), (product >> PACK_SHIFT) + product[PACK_SHIFT - 1]]
            for column, value in zip((low, low + 1), products, strict=True):
                above = self.sums.word_select(column, SUM_BITS).as_signed()
                m.d.sync += self.next_sums.word_select(column, SUM_BITS).eq(above + value)
        return m

