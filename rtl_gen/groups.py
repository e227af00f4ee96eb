"""Limits the choice of experts to the best groups."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import ACC_BITS, MAX_GROUPS, Arch
from rtl_gen.types import expert_bits, layer_layout

HALF = ACC_BITS // 2

LOWEST = -(1 << ACC_BITS - 1)
"""The lowest key."""


class Groups(wiring.Component):
    """Turns the experts' keys, in order, into those of their groups; or leaves out those of groups that are not kept.

    The two largest keys of a group are found in halves, the lower one a cycle behind, as in :mod:`rtl_gen.topk`.

    Latency: four cycles; throughput: a key a cycle.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    layer : In(layer_layout())
        Stable while keys are under way.
    clear : In(1)
        Keep no group, and expect expert 0. Needed after a reset.
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
        # Keys come from far, and what is done with them is long.
        valid, last, key = Signal(), Signal(), Signal.like(self.key)
        m.d.sync += [valid.eq(self.valid), last.eq(self.last), key.eq(self.key)]
        # `clear` is all the reset that these need: the real one would be an input of logic, from far.
        kept = Signal(MAX_GROUPS, reset_less=True)
        expert = Signal(expert_bits(self.arch), reset_less=True)
        group = Signal(range(MAX_GROUPS), reset_less=True)
        place = Signal(expert_bits(self.arch), reset_less=True)  # in the group
        # The layer does not change, and its sizes come from far.
        last_place, grouped, group_zero, group_sum = Signal.like(place), Signal(), Signal(), Signal()
        m.d.sync += [
            last_place.eq(layer.group_size - 1),
            grouped.eq(layer.group_size != 0),
            group_zero.eq(layer.group_zero),
            group_sum.eq(layer.group_sum),
        ]
        end_of_group = place == last_place
        with m.If(self.keep):
            m.d.sync += kept.bit_select(self.group, 1).eq(1)
        with m.If(valid):
            m.d.sync += [expert.eq(expert + 1), place.eq(place + 1)]
            with m.If(end_of_group):
                m.d.sync += [place.eq(0), group.eq(group + 1)]
        with m.If(last | self.clear):
            m.d.sync += [expert.eq(0), place.eq(0), group.eq(0)]
        with m.If(self.clear):
            m.d.sync += kept.eq(0)

        # ---- the two largest keys of a group ----
        upper, lower = key[HALF:].as_signed(), Signal(HALF)
        largest, second = Signal(signed(ACC_BITS - HALF)), Signal(signed(ACC_BITS - HALF))
        begins, takes_first, takes_second = Signal(), Signal(), Signal()
        m.d.comb += [
            begins.eq(valid & (place == 0)),
            takes_first.eq(begins | valid & (upper > largest)),
            takes_second.eq(valid & (upper > second)),
        ]
        with m.If(takes_first):
            m.d.sync += [largest.eq(upper), second.eq(Mux(begins, LOWEST >> HALF, largest))]
        with m.Elif(takes_second):
            m.d.sync += second.eq(upper)
        # The lower halves, a cycle later, when the upper ones have been copied. Ties are found then, too: synthesis
        # would make one long carry chain of the comparisons for more and for equal.
        largest_upper, second_upper, later_upper = Signal.like(largest), Signal.like(second), Signal.like(upper)
        later_valid, ties_first, ties_second = Signal(), Signal(), Signal()
        largest_lower, second_lower = Signal(HALF), Signal(HALF)
        began, took_first, took_second = Signal(), Signal(), Signal()
        m.d.sync += [
            lower.eq(key[:HALF]),
            largest_upper.eq(largest),
            second_upper.eq(second),
            began.eq(begins),
            took_first.eq(takes_first),
            took_second.eq(takes_second),
            later_upper.eq(upper),
            later_valid.eq(valid),
        ]
        m.d.comb += [
            ties_first.eq(later_valid & (later_upper == largest_upper)),
            ties_second.eq(later_valid & (later_upper == second_upper)),
        ]
        with m.If(took_first | ties_first & (lower > largest_lower)):
            m.d.sync += [largest_lower.eq(lower), second_lower.eq(Mux(began, 0, largest_lower))]
        with m.Elif(took_second | ties_second & (lower > second_lower)):
            m.d.sync += second_lower.eq(lower)

        # ---- what comes of a key ----
        stays = ~grouped | kept.bit_select(group, 1)
        entry_layout = data.StructLayout({"key": signed(ACC_BITS), "index": expert.shape(), "valid": 1, "last": 1})
        entry, later = Signal(entry_layout), Signal(entry_layout)
        is_kept = Signal()
        m.d.sync += [
            is_kept.eq(stays),
            entry.key.eq(key),
            entry.index.eq(Mux(self.grouping, group, expert)),
            entry.valid.eq(valid & Mux(self.grouping, end_of_group, stays | group_zero)),
            entry.last.eq(last),
            later.eq(entry),
        ]
        with m.If(~is_kept):
            m.d.sync += later.key.eq(0)
        best, next_best = (
            Cat(*halves).as_signed() for halves in ((largest_lower, largest_upper), (second_lower, second_upper))
        )
        m.d.sync += [
            self.o_key.eq(Mux(self.grouping, Mux(group_sum, best + next_best, best), later.key)),
            self.o_index.eq(later.index),
            self.o_valid.eq(later.valid),
            self.o_last.eq(later.last),
        ]
        return m
