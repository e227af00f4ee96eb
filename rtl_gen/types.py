"""The records that pass between the blocks."""

from __future__ import annotations

from amaranth.hdl import Shape, Value, signed, unsigned
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from moe_hw.arch import ACC_BITS, EXP_BITS, ROWS, SEGMENT_ALIGN, Arch
from moe_hw.registers import LAYER


class Kind(enum.Enum, shape=2):
    """What a phase of the array computes."""

    ROUTER = 0
    UP = 1
    DOWN = 2


def slot_bits(arch: Arch) -> int:
    """Bits of a token number, and of a slot: a token's place in the job at hand."""
    return max(1, bits_for(arch.max_tokens - 1))


def expert_bits(arch: Arch) -> int:
    """Bits of an expert number; the shared expert is the one after the last."""
    return bits_for(arch.max_experts)


def address_bits(arch: Arch) -> int:
    """Bits of an address in units of 64 bytes."""
    return arch.addr_bits - bits_for(SEGMENT_ALIGN - 1)


def layer_layout() -> data.StructLayout:
    """A layer descriptor, without its magic word, and the number of tokens of the command."""
    fields: dict[str, Shape] = {
        word.name: signed(word.bits) if word.signed else unsigned(word.bits)
        for word in LAYER.words
        if word.name != "magic"
    }
    return data.StructLayout({**fields, "tokens": unsigned(16)})


def router_groups(arch: Arch, layer: data.View) -> Value:
    """Column groups of the router matrix, the shared expert's gate included."""
    return (layer.experts + layer.shared_gate + arch.columns - 1) >> exact_log2(arch.columns)


def up_groups(arch: Arch, inter_blocks: Value) -> Value:
    """Column groups of a gate_up matrix: a row for the gate and one for the up of each neuron."""
    return inter_blocks << exact_log2(2 * ROWS // arch.columns)


def down_groups(arch: Arch, layer: data.View) -> Value:
    """Column groups of a down matrix."""
    return layer.hidden_blocks << exact_log2(ROWS // arch.columns)


def weight_layout() -> data.StructLayout:
    """A routing weight, ``mantissa * 2**exponent``."""
    return data.StructLayout({"mantissa": unsigned(16), "exponent": signed(EXP_BITS)})


def route_layout(arch: Arch) -> data.StructLayout:
    """One choice of the router; ``last`` marks the batch's last one."""
    return data.StructLayout(
        {
            "token": unsigned(slot_bits(arch)),
            "expert": unsigned(expert_bits(arch)),
            "weight": weight_layout(),
            "last": unsigned(1),
        }
    )


def slot_layout(arch: Arch) -> data.StructLayout:
    """A slot of the slot table: which token it is and the weight of its result."""
    return data.StructLayout({"token": unsigned(slot_bits(arch)), "weight": weight_layout()})


def segment_layout(arch: Arch) -> data.StructLayout:
    """A matrix segment for the streamer; ``address`` in units of 64 bytes from the layer descriptor."""
    return data.StructLayout(
        {
            "address": unsigned(address_bits(arch)),
            "groups": unsigned(16),
            "blocks": unsigned(10),
            "passes": unsigned(3),
        }
    )


def job_layout(arch: Arch) -> data.StructLayout:
    """Work for the array: the router matrix, or one expert's two matrices, for slots 0 to ``slots`` - 1."""
    return data.StructLayout(
        {
            "router": unsigned(1),
            "shared": unsigned(1),
            "parity": unsigned(1),
            "slots": unsigned(bits_for(arch.max_tokens)),
        }
    )


def result_layout(arch: Arch) -> data.StructLayout:
    """One token's finished accumulators of a column group.

    ``base_exponent`` is that of the vector that was multiplied (E or E_hidden of ``docs/numerics.md``);
    ``last`` marks the last group of the last slot of a phase.
    """
    return data.StructLayout(
        {
            "kind": Kind,
            "shared": unsigned(1),
            "parity": unsigned(1),
            "last": unsigned(1),
            "slot": unsigned(slot_bits(arch)),
            "token": unsigned(slot_bits(arch)),
            "group": unsigned(16),
            "base_exponent": signed(EXP_BITS),
            "token_exponent": signed(EXP_BITS),
            "acc": data.ArrayLayout(signed(ACC_BITS), arch.columns),
        }
    )


def hidden_value_layout(arch: Arch) -> data.StructLayout:
    """One hidden activation, ``(-1)**sign * mantissa * 2**exponent``; ``last`` marks the last of a job."""
    return data.StructLayout(
        {
            "slot": unsigned(slot_bits(arch)),
            "neuron": unsigned(16),
            "sign": unsigned(1),
            "mantissa": unsigned(16),
            "exponent": signed(EXP_BITS),
            "last": unsigned(1),
        }
    )


def hidden_block_layout(arch: Arch) -> data.StructLayout:
    """A re-quantised block of 32 hidden activations; ``last`` marks the last of a job."""
    return data.StructLayout(
        {
            "slot": unsigned(slot_bits(arch)),
            "block": unsigned(10),
            "exponent": signed(EXP_BITS),
            "mantissas": data.ArrayLayout(signed(8), ROWS),
            "last": unsigned(1),
        }
    )


class SlotRead(wiring.Signature):
    """A read port of the slot table, from the reader's side; ``data`` follows the address by one cycle.

    Members:
        parity: the job's half of the table.
        index: the slot.
        data: what the slot holds, a :func:`slot_layout`.
    """

    def __init__(self, arch: Arch):
        super().__init__({"parity": Out(1), "index": Out(slot_bits(arch)), "data": In(slot_layout(arch))})
