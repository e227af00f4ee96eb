"""Where a matrix lies and how large it is: the router's, an expert's gate_up, or a chunk of its down."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import Arch
from rtl_gen.types import (
    Kind,
    address_bits,
    groups_of,
    layer_layout,
    router_groups,
    segment_layout,
    table_layout,
    up_groups,
)


class MatrixSegment(wiring.Component):
    """Makes the segment of a matrix, and goes through the chunks of output columns.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
        Stable from a cycle before the first segment.
    kind : In(Kind), shared : In(1), expert : In(table_layout())
        Which matrix: of the router, or gate_up or down of the shared or of the routed ``expert``. Codes of an expert
        have at least two bits.
    restart : In(1), advance : In(1)
        The first chunk; the one after this.
    last_chunk : Out(1)
        There is none after this.
    segment : Out(segment_layout(arch))
        The matrix; of kind DOWN, its chunk.

    Latency: none; of kind DOWN two cycles after ``shared`` and ``expert``, three after ``restart`` and ``advance``.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "kind": In(Kind),
                "shared": In(1),
                "expert": In(table_layout()),
                "restart": In(1),
                "advance": In(1),
                "last_chunk": Out(1),
                "segment": Out(segment_layout(arch)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer

        # ---- the chunk ----
        # `restart` is all the reset that these need: the real one would be an input of logic, from far.
        first_block = Signal(10, reset_less=True)
        blocks_left = Signal(10)
        chunk_blocks = Signal(10)
        offset = Signal(address_bits(arch), reset_less=True)  # of the chunk in a down matrix
        shared_offset = Signal.like(offset)
        m.d.comb += [
            blocks_left.eq(layer.hidden_blocks - first_block),
            self.last_chunk.eq(blocks_left <= layer.chunk_blocks),
        ]
        m.d.sync += chunk_blocks.eq(Mux(self.last_chunk, blocks_left, layer.chunk_blocks))
        with m.If(self.restart):
            m.d.sync += [first_block.eq(0), offset.eq(0), shared_offset.eq(0)]
        with m.Elif(self.advance):
            m.d.sync += [
                first_block.eq(first_block + layer.chunk_blocks),
                offset.eq(offset + layer.chunk_stride),
                shared_offset.eq(shared_offset + layer.shared_chunk_stride),
            ]

        # ---- the matrix ----
        # Column groups are the same for a whole batch, so they are registers.
        of_router, of_up, of_shared_up = Signal(16), Signal(16), Signal(16)
        m.d.sync += [
            of_router.eq(router_groups(arch, layer)),
            of_up.eq(up_groups(arch, layer, layer.inter_blocks)),
            of_shared_up.eq(up_groups(arch, layer, layer.shared_blocks)),
        ]
        inter_blocks = Mux(self.shared, layer.shared_blocks, layer.inter_blocks)
        base = Mux(self.shared, layer.shared_address, self.expert.address)
        bits = Mux(self.shared, layer.shared_bits, Mux(self.expert.bits < 2, 2, self.expert.bits))
        # Four tiles are a beat of scales and four times as many beats of planes as a code has bits.
        quarters, down = Signal.like(offset), Signal.like(offset)
        bits_down = Signal(4)
        few = sum((Mux(bits_down[place], quarters << place, 0) for place in range(3)), Const(0))
        m.d.sync += [
            quarters.eq(
                Mux(self.shared, layer.shared_down, layer.expert_down) + Mux(self.shared, shared_offset, offset)
            ),
            # No code has more than eight bits.
            bits_down.eq(bits),
            down.eq(quarters + (Mux(bits_down[3], quarters << 3, few) << 2)),
        ]
        segment = self.segment
        m.d.comb += segment.bits.eq(bits)
        with m.Switch(self.kind):
            with m.Case(Kind.ROUTER):
                m.d.comb += [
                    segment.address.eq(layer.router_address),
                    segment.groups.eq(of_router),
                    segment.blocks.eq(layer.input_blocks),
                    segment.bits.eq(layer.router_bits),
                ]
            with m.Case(Kind.UP):
                m.d.comb += [
                    segment.address.eq(base),
                    segment.groups.eq(Mux(self.shared, of_shared_up, of_up)),
                    segment.blocks.eq(layer.input_blocks),
                ]
            with m.Case(Kind.DOWN):
                m.d.comb += [
                    segment.address.eq(base + down),
                    segment.groups.eq(groups_of(arch, chunk_blocks)),
                    segment.blocks.eq(inter_blocks),
                ]
        return m
