"""Checks a layer descriptor against the sizes of the bitstream."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import MAX_GROUPS, Arch
from moe_hw.registers import LAYER_MAGIC, Status
from moe_hw.tables import RELU
from rtl_gen.score import Function
from rtl_gen.types import groups_of, layer_layout, longest_hidden, router_groups

PRODUCT_BITS = 28
"""Bits of a number of tokens times a number of blocks."""


class LayerCheck(wiring.Component):
    """Finds the first reason, in the order of the status codes, why a batch cannot run.

    Latency: three cycles; throughput: a descriptor a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout()), magic : In(32)
        The descriptor.
    tokens, slots, chunk_blocks : In(32)
        The command's words, all of each.
    status : Out(Status)
        ``OK`` or the reason.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "magic": In(32),
                "tokens": In(32),
                "slots": In(32),
                "chunk_blocks": In(32),
                "status": Out(Status),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer

        widest = Signal(10)
        longest = Signal(11)  # vector of a job
        groups = Signal(16)
        sums = Signal(PRODUCT_BITS)
        in_groups, choices = Signal(16), Signal(16)  # experts in all groups, in those that are kept

        def members(groups: Value) -> Value:
            """A product, but of no multiplier."""
            return sum((Mux(bit, layer.group_size << place, 0) for place, bit in enumerate(groups)), Const(0))

        vector_blocks = Signal(PRODUCT_BITS)
        logit_words = Signal(PRODUCT_BITS)
        m.d.sync += [
            widest.eq(longest_hidden(layer)),
            longest.eq(Mux((layer.input_blocks << 1) > widest, layer.input_blocks << 1, widest)),
            groups.eq(Mux(layer.given_routes, 0, router_groups(arch, layer))),
        ]
        m.d.sync += [
            vector_blocks.eq(layer.slots * longest),
            sums.eq(layer.tokens * groups_of(arch, layer.chunk_blocks)),
            logit_words.eq(layer.slots * groups),
            in_groups.eq(members(layer.groups)),
            choices.eq(members(layer.kept_groups)),
        ]

        shape_ok = Mux(layer.shared_blocks == 0, ~layer.shared_gate, layer.shared_bits >= 2)
        shape_ok = shape_ok & Mux(layer.given_routes, ~layer.shared_gate, (layer.router_bits >= 2) & layer.scale[15])
        shape_ok = shape_ok & (layer.activation <= RELU) & ~Mux(layer.gated, layer.square, layer.softcap)
        for size in (layer.hidden_blocks, layer.input_blocks, layer.inter_blocks, layer.experts):
            shape_ok = shape_ok & (size != 0)
        shape_ok = shape_ok & ~(layer.elements & (layer.shared_blocks != 0) & (layer.shared_bits != 4))
        # A sum of 0 would never be normalised, the logarithm is no score, and of a softmax the logits are no keys.
        shape_ok = shape_ok & ~(layer.normalise & (layer.epsilon == 0) & ~layer.given_routes)
        shape_ok = shape_ok & (layer.score != Function.LOGARITHM) & (layer.correction != 3)
        shape_ok = shape_ok & ~((layer.score == Function.EXPONENTIAL) & (layer.correction == 2))
        # The first choice's logit would not be the largest.
        shape_ok = shape_ok & ((layer.correction != 0) | ~(layer.group_sum | layer.group_zero))
        groups_ok = (layer.experts == in_groups) & (layer.groups <= MAX_GROUPS)
        groups_ok = groups_ok & (layer.kept_groups != 0) & (layer.kept_groups <= layer.groups)
        groups_ok = groups_ok & (layer.kept_groups <= arch.max_top_k)
        groups_ok = groups_ok & (layer.group_zero | (layer.top_k <= choices))
        groups_ok = groups_ok & ~(layer.group_sum & (layer.group_size == 1))
        groups_ok = groups_ok | (layer.group_size == 0)
        top_k_ok = (layer.top_k != 0) & (layer.top_k <= arch.max_top_k) & (layer.top_k <= layer.experts)
        slots_ok = (self.slots != 0) & (self.slots <= arch.slots)
        several = self.chunk_blocks != layer.hidden_blocks
        within_beat = several & (layer.chunk_blocks % arch.chunk_granule != 0)
        cut_ok = slots_ok & (self.chunk_blocks != 0) & (self.chunk_blocks <= layer.hidden_blocks) & ~within_beat
        found = {}
        for name, condition in (("shape", shape_ok), ("groups", groups_ok), ("top_k", top_k_ok), ("cut", cut_ok)):
            found[name] = Signal(name=f"{name}_ok")
            m.d.sync += found[name].eq(condition)
        checks = (
            (self.magic != LAYER_MAGIC, Status.BAD_LAYER),
            ((self.tokens == 0) | (self.tokens > arch.max_tokens), Status.BAD_TOKENS),
            (~(found["shape"] & found["groups"]), Status.BAD_SHAPE),
            (layer.experts > arch.max_experts, Status.TOO_MANY_EXPERTS),
            (~found["top_k"], Status.BAD_TOP_K),
            (vector_blocks > arch.vector_blocks // 2, Status.VECTOR_BUFFER_FULL),
            (sums > arch.combine_elements // arch.columns, Status.COMBINE_BUFFER_FULL),
            (logit_words > arch.logit_words, Status.LOGIT_BUFFER_FULL),
            (~found["cut"], Status.BAD_CUT),
        )
        # The last assignment wins, so the first check comes last.
        for condition, status in reversed(checks):
            with m.If(condition):
                m.d.comb += self.status.eq(status)
        return m
