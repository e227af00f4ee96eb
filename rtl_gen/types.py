"""The records that pass between the blocks."""

from __future__ import annotations

from amaranth.hdl import Mux, Shape, Value, signed, unsigned
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from moe_hw.arch import ACC_BITS, EXP_BITS, ROWS, SEGMENT_ALIGN, Arch
from moe_hw.registers import COMMAND, ENTRY_ADDRESS_BITS, LAYER

BITS = 5
"""Bits of the number of bits of a code."""

CUT_WORDS = ("tokens", "slots", "chunk_blocks", "chunk_stride", "shared_chunk_stride")
"""Words of a command that belong to the layer at work."""


class Kind(enum.Enum, shape=2):
    """What a phase of the array computes."""

    ROUTER = 0
    UP = 1
    DOWN = 2


def slot_bits(arch: Arch) -> int:
    """Bits of a slot: a vector's place in the job at hand."""
    return max(1, bits_for(arch.slots - 1))


def token_bits(arch: Arch) -> int:
    """Bits of a token's number in the batch."""
    return max(1, bits_for(arch.max_tokens - 1))


def count_bits(arch: Arch) -> int:
    """Bits of a number of tokens."""
    return bits_for(arch.max_tokens)


def place_bits(arch: Arch) -> int:
    """Bits of the place of a choice, numbered token by token, the shared expert's last; and of the place behind all."""
    return bits_for(arch.queue_entries)


def expert_bits(arch: Arch) -> int:
    """Bits of an expert number; the shared expert is the one after the last."""
    return bits_for(arch.max_experts)


def address_bits(arch: Arch) -> int:
    """Bits of an address in units of 64 bytes."""
    return arch.addr_bits - bits_for(SEGMENT_ALIGN - 1)


def layer_layout() -> data.StructLayout:
    """A layer descriptor without its magic word, and how the command cuts the batch."""
    words = {word.name: word for word in (*LAYER.words, *COMMAND.words)}
    names = [word.name for word in LAYER.words if word.name != "magic"]
    fields: dict[str, Shape] = {
        name: signed(words[name].bits) if words[name].signed else unsigned(words[name].bits)
        for name in (*names, *CUT_WORDS)
    }
    return data.StructLayout(fields)


def passes_of(bits: Value) -> Value:
    """Array passes of codes of ``bits`` bits, as ``moe_hw.arch.passes_of``."""
    return (bits + 2) >> 2


def first_planes(bits: Value) -> Value:
    """Bit planes of the first of them, 2 to 5."""
    return (bits + 2)[:2] + 2


def groups_of(arch: Arch, blocks: Value) -> Value:
    """Column groups of ``blocks`` blocks of 32 rows of a matrix."""
    if arch.columns <= ROWS:
        return blocks << exact_log2(ROWS // arch.columns)
    return (blocks + arch.columns // ROWS - 1) >> exact_log2(arch.columns // ROWS)


def longest_hidden(layer: data.View) -> Value:
    """Blocks of the layer's longest hidden vector."""
    return Mux(layer.inter_blocks > layer.shared_blocks, layer.inter_blocks, layer.shared_blocks)


def router_groups(arch: Arch, layer: data.View) -> Value:
    """Column groups of the router matrix, the shared expert's gate included."""
    return (layer.experts + layer.shared_gate + arch.columns - 1) >> exact_log2(arch.columns)


def up_groups(arch: Arch, layer: data.View, inter_blocks: Value) -> Value:
    """Column groups of a gate_up matrix: a row for the gate and one for the up of each neuron; or one for both."""
    return groups_of(arch, Mux(layer.gated, inter_blocks << 1, inter_blocks))


def combine_exponent(layer: data.View, token_exponent: Value) -> Value:
    """Exponent of a token's combine words: the expert's degree in its input counts."""
    return Mux(layer.gated | layer.square, token_exponent << 1, token_exponent) + layer.combine_exponent


def weight_layout() -> data.StructLayout:
    """A routing weight, ``mantissa * 2**exponent``; only given ones can be ``negative``."""
    return data.StructLayout({"mantissa": unsigned(16), "exponent": signed(EXP_BITS), "negative": unsigned(1)})


def route_layout(arch: Arch) -> data.StructLayout:
    """One choice of the router, or ``none``; ``last`` marks the batch's last one."""
    return data.StructLayout(
        {
            "token": unsigned(token_bits(arch)),
            "expert": unsigned(expert_bits(arch)),
            "none": unsigned(1),
            "weight": weight_layout(),
            "last": unsigned(1),
        }
    )


def slot_layout(arch: Arch) -> data.StructLayout:
    """A slot of the slot table: a token and its weight for the expert; ``unused`` if no token chose the expert."""
    return data.StructLayout({"token": unsigned(token_bits(arch)), "unused": unsigned(1), "weight": weight_layout()})


def segment_layout(arch: Arch) -> data.StructLayout:
    """A matrix segment for the streamer; ``address`` in units of 64 bytes from the layer descriptor."""
    return data.StructLayout(
        {
            "address": unsigned(address_bits(arch)),
            "groups": unsigned(16),
            "blocks": unsigned(10),
            "bits": unsigned(BITS),
        }
    )


def table_layout() -> data.StructLayout:
    """An expert's entry of the expert table: where it lies from the layer descriptor on, and the bits of its codes."""
    return data.StructLayout({"address": unsigned(ENTRY_ADDRESS_BITS), "bits": unsigned(32 - ENTRY_ADDRESS_BITS)})


def fetch_layout(arch: Arch) -> data.StructLayout:
    """Vectors to load: ``lines`` lines of 64 bytes from ``address``.

    They are the input of ``token`` for ``slot``, of ``blocks`` blocks, for the router as many lines again for the lower
    halves, and ``last`` marks the job's last one; or, if ``hidden``, the hidden activations of all slots up to
    ``slot``, of ``blocks`` each.
    """
    return data.StructLayout(
        {
            "address": unsigned(address_bits(arch)),
            "lines": unsigned(bits_for(arch.vector_blocks // 2)),
            "blocks": unsigned(10),
            "hidden": unsigned(1),
            "half": unsigned(1),
            "slot": unsigned(slot_bits(arch)),
            "token": unsigned(token_bits(arch)),
            "last": unsigned(1),
        }
    )


def job_layout(arch: Arch) -> data.StructLayout:
    """Work for the array: ``groups`` column groups of a matrix for the vectors of slots 0 to ``slots`` - 1.

    The matrix has codes of ``bits`` bits; ``half`` is the half of the slot table and of the vector buffer that the
    vectors are in.
    """
    return data.StructLayout(
        {
            "kind": Kind,
            "shared": unsigned(1),
            "half": unsigned(1),
            "slots": unsigned(bits_for(arch.slots)),
            "groups": unsigned(16),
            "bits": unsigned(BITS),
        }
    )


def result_layout(arch: Arch) -> data.StructLayout:
    """One vector's finished accumulators of a column group.

    ``base_exponent`` is that of the vector that was multiplied (E or E_hidden of ``docs/numerics.md``);
    ``last`` marks the last group of the last slot of a job.
    """
    return data.StructLayout(
        {
            "kind": Kind,
            "shared": unsigned(1),
            "last": unsigned(1),
            "slot": unsigned(slot_bits(arch)),
            "group": unsigned(16),
            "of": slot_layout(arch),
            "base_exponent": signed(EXP_BITS),
            "token_exponent": signed(EXP_BITS),
            "acc": data.ArrayLayout(signed(ACC_BITS), arch.columns),
        }
    )


def hidden_value_layout() -> data.StructLayout:
    """One hidden activation, ``(-1)**sign * mantissa * 2**exponent``."""
    return data.StructLayout({"sign": 1, "mantissa": 16, "exponent": signed(EXP_BITS)})


def hidden_values_layout(arch: Arch) -> data.StructLayout:
    """Hidden activations of ``lanes`` neurons from ``neuron`` on; ``last`` marks the last of a job."""
    return data.StructLayout(
        {
            "slot": unsigned(slot_bits(arch)),
            "unused": unsigned(1),
            "shared": unsigned(1),
            "neuron": unsigned(16),
            "values": data.ArrayLayout(hidden_value_layout(), arch.lanes),
            "last": unsigned(1),
        }
    )


def hidden_block_layout(arch: Arch) -> data.StructLayout:
    """A re-quantised block of 32 hidden activations; ``last`` marks the last of a job."""
    return data.StructLayout(
        {
            "unused": unsigned(1),
            "shared": unsigned(1),
            "block": unsigned(11),
            "exponent": signed(EXP_BITS),
            "mantissas": data.ArrayLayout(signed(8), ROWS),
            "last": unsigned(1),
        }
    )


class SlotRead(wiring.Signature):
    """A read port of the slot table, from the reader's side; ``data`` follows the address by one cycle.

    Members:
        half: the job's half of the table.
        index: the slot.
        data: what the slot holds, a :func:`slot_layout`.
    """

    def __init__(self, arch: Arch):
        super().__init__({"half": Out(1), "index": Out(slot_bits(arch)), "data": In(slot_layout(arch))})
