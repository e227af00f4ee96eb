"""Limits the choice of experts to the best groups."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import ACC_BITS, MAX_GROUPS, Arch
from rtl_gen.types import expert_bits, layer_layout

LOWEST = -(1 << ACC_BITS - 1)
"""The lowest key."""


class Groups(wiring.Component):
    """Turns the experts' keys, in order, into those of their groups; or leaves out those of groups that are not kept.

    Latency: two cycles; throughput: a key a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
        Stable while keys are under way.
    clear : In(1)
        Keep no group, and expect expert 0.
    grouping : In(1)
        Keys become those of groups, instead of those of the experts that may be chosen.
    keep : In(1), group : In
        Pulse: keep ``group``.
    valid, key : In
        The next expert's key.
    last : In(1)
        No key follows; with the last one or after it.
    o_valid, o_key, o_index : Out
        A key of an expert or a group, and its number.
    o_last : Out(1)
        Follows ``last``, with the last key or after it.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "layer": In(layer_layout()),
                "clear": In(1),
                "grouping": In(1),
                "keep": In(1),
                "group": In(range(MAX_GROUPS)),
                "valid": In(1),
                "key": In(signed(ACC_BITS)),
                "last": In(1),
                "o_valid": Out(1),
                "o_key": Out(signed(ACC_BITS)),
                "o_index": Out(expert_bits(arch)),
                "o_last": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layer = self.layer
        kept = Signal(MAX_GROUPS)
        expert = Signal(expert_bits(self.arch))
        group = Signal(range(MAX_GROUPS))
        place = Signal(expert_bits(self.arch))  # in the group
        end_of_group = place == layer.group_size - 1
        with m.If(self.keep):
            m.d.sync += kept.bit_select(self.group, 1).eq(1)
        with m.If(self.valid):
            m.d.sync += [expert.eq(expert + 1), place.eq(place + 1)]
            with m.If(end_of_group):
                m.d.sync += [place.eq(0), group.eq(group + 1)]
        with m.If(self.last | self.clear):
            m.d.sync += [expert.eq(0), place.eq(0), group.eq(0)]
        with m.If(self.clear):
            m.d.sync += kept.eq(0)

        # ---- the two largest keys of a group ----
        largest, second = Signal(signed(ACC_BITS)), Signal(signed(ACC_BITS))
        with m.If(self.valid):
            with m.If(place == 0):
                m.d.sync += [largest.eq(self.key), second.eq(LOWEST)]
            with m.Elif(self.key > largest):
                m.d.sync += [largest.eq(self.key), second.eq(largest)]
            with m.Elif(self.key > second):
                m.d.sync += second.eq(self.key)

        # ---- what comes of a key ----
        key = Signal(signed(ACC_BITS))
        index = Signal.like(expert)
        valid, last = Signal(), Signal()
        stays = (layer.group_size == 0) | kept.bit_select(group, 1)
        m.d.sync += [
            key.eq(Mux(stays, self.key, 0)),
            index.eq(Mux(self.grouping, group, expert)),
            valid.eq(self.valid & Mux(self.grouping, end_of_group, stays | layer.group_zero)),
            last.eq(self.last),
        ]
        m.d.sync += [
            self.o_key.eq(Mux(self.grouping, Mux(layer.group_sum, largest + second, largest), key)),
            self.o_index.eq(index),
            self.o_valid.eq(valid),
            self.o_last.eq(last),
        ]
        return m
