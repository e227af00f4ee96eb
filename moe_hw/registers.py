"""Every word that host and accelerator exchange: CSRs, commands, layer descriptors, completions.

The tables of this module make the RTL, the driver and ``docs/register-map.md``; nothing repeats them.
All words are 32 bits, little-endian. Addresses and offsets count in units of 64 bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

LAYOUT_VERSION = 6
"""Version of the words below and of the memory image; part of the configuration hash."""

DEVICE_MAGIC = 0x4D6F4548  # "HEoM" in memory: MoE hardware
COMMAND_MAGIC = 0x4D6F4543
LAYER_MAGIC = 0x4D6F454C

ONE = (-15 & 0xFFF) << 16 | 1 << 15
"""The number one in the form of the descriptor's limits and scale."""

ENTRY_ADDRESS_BITS = 28
"""Of a word of the expert table: its lower bits are the expert's address, the others the bits of its codes."""

NO_LIMIT = 2047 << 16 | 0xFFFF
"""Of the descriptor's limits, one that nothing reaches."""

NO_CAP = 0x800 << 16
"""Of the reciprocals of the descriptor's softcaps, zero: there is no cap."""


@dataclass(frozen=True)
class Word:
    """One 32-bit word of a record.

    ``bits`` is the width the accelerator keeps; ``signed`` words are two's complement over all 32 bits.
    """

    name: str
    doc: str
    bits: int = 32
    signed: bool = False


class Record:
    """A fixed sequence of words, padded to ``size`` words."""

    def __init__(self, name: str, size: int, words: Iterable[Word]):
        self.name = name
        self.size = size
        self.words = tuple(words)
        self.index = {word.name: position for position, word in enumerate(self.words)}
        assert len(self.words) <= size and len(self.index) == len(self.words)

    @property
    def size_bytes(self) -> int:
        return self.size * 4

    def pack(self, values: Mapping[str, int]) -> np.ndarray:
        """Words from values by name.

        Returns:
            uint32 array of ``size`` words; words that no value names are zero.

        Raises:
            ValueError: an unknown name, or a value outside its word's range.
        """
        out = np.zeros(self.size, np.uint32)
        for name, value in values.items():
            if name not in self.index:
                raise ValueError(f"{self.name}: expected one of {', '.join(self.index)}, got {name!r}")
            word = self.words[self.index[name]]
            low, high = (-(1 << word.bits - 1), (1 << word.bits - 1) - 1) if word.signed else (0, (1 << word.bits) - 1)
            if not low <= int(value) <= high:
                raise ValueError(f"{self.name}.{name}: expected {low} to {high}, got {value}")
            out[self.index[name]] = int(value) & 0xFFFFFFFF
        return out

    def unpack(self, words: np.ndarray) -> dict[str, int]:
        """Values by name from at least ``len(self.words)`` uint32 words."""
        values = {}
        for position, word in enumerate(self.words):
            raw = int(words[position])
            values[word.name] = raw - (1 << 32) if word.signed and raw >> 31 else raw
        return values


@dataclass(frozen=True)
class Csr:
    """A control and status register; ``access`` is ``ro`` or ``rw``."""

    name: str
    access: str
    doc: str


CSRS = (
    Csr("magic", "ro", f"{DEVICE_MAGIC:#010x}: this is a moe-hw accelerator."),
    Csr("version", "ro", "Version of the register and memory layout."),
    Csr("config_hash_low", "ro", "Hash of the build-time sizes, low half."),
    Csr("config_hash_high", "ro", "Hash of the build-time sizes, high half."),
    Csr("ring_base", "rw", "Address of the command ring, in units of 64 bytes."),
    Csr("ring_mask", "rw", "Commands in the ring less one; the ring holds a power of two of them."),
    Csr("tail", "rw", "Commands submitted so far (modulo 2^32). Writing it rings the doorbell."),
    Csr("head", "ro", "Commands completed so far (modulo 2^32)."),
    Csr("status", "ro", "Status code of the last command completed."),
    Csr("state", "ro", "What the accelerator is waiting for now: one bit a stream, as in Waiting."),
)


def csr_address(name: str) -> int:
    """Byte address of a CSR.

    Raises:
        KeyError: there is no CSR of this name.
    """
    for position, csr in enumerate(CSRS):
        if csr.name == name:
            return 4 * position
    raise KeyError(name)


class Waiting(enum.IntFlag):
    """Bits of the ``state`` CSR. Several can be set at a time."""

    COMMAND_FETCH = 1 << 0
    LAYER_FETCH = 1 << 1
    VECTOR_READ = 1 << 2
    WEIGHT_READ = 1 << 3
    ROUTING = 1 << 4
    COMPUTE = 1 << 5
    OUTPUT_WRITE = 1 << 6
    ROUTING_WRITE = 1 << 7
    COMPLETION_WRITE = 1 << 8


class Status(enum.IntEnum):
    """How a command ended."""

    OK = 0
    BAD_COMMAND = 1
    BAD_LAYER = 2
    BAD_TOKENS = 3
    BAD_SHAPE = 4
    TOO_MANY_EXPERTS = 5
    BAD_TOP_K = 6
    VECTOR_BUFFER_FULL = 7
    COMBINE_BUFFER_FULL = 8
    LOGIT_BUFFER_FULL = 9
    BAD_CUT = 10
    COMMAND_READ_ERROR = 16
    LAYER_READ_ERROR = 17
    VECTOR_READ_ERROR = 18
    WEIGHT_READ_ERROR = 19
    WRITE_ERROR = 20
    ROUTES_READ_ERROR = 21
    OVERFLOW = 32


STATUS_TEXT = {
    Status.OK: "completed",
    Status.BAD_COMMAND: "the command does not start with its magic word",
    Status.BAD_LAYER: "the layer descriptor does not start with its magic word",
    Status.BAD_TOKENS: "the number of tokens is 0 or above the accelerator's maximum",
    Status.BAD_SHAPE: "a size of the layer descriptor is 0 or contradicts another",
    Status.TOO_MANY_EXPERTS: "the layer has more experts than the accelerator's maximum",
    Status.BAD_TOP_K: "top-k is 0, above the accelerator's maximum or above the number of experts",
    Status.VECTOR_BUFFER_FULL: "the vectors of a job do not fit half of the vector buffer",
    Status.COMBINE_BUFFER_FULL: "the outputs do not fit the combine buffer",
    Status.LOGIT_BUFFER_FULL: "the router logits of a job do not fit the logit memory",
    Status.BAD_CUT: "the slots or the chunk of the command are 0 or above the accelerator's or the layer's maximum, "
    "or a chunk ends within a beat of scales",
    Status.COMMAND_READ_ERROR: "memory answered an error while the command was read",
    Status.LAYER_READ_ERROR: "memory answered an error while the layer descriptor or a table behind it was read",
    Status.VECTOR_READ_ERROR: "memory answered an error while inputs or hidden activations were read",
    Status.WEIGHT_READ_ERROR: "memory answered an error while weights were read",
    Status.WRITE_ERROR: "memory answered an error while results were written",
    Status.ROUTES_READ_ERROR: "memory answered an error while given routes were read",
    Status.OVERFLOW: "a result saturated: the image's combine exponent is too small",
}
assert set(STATUS_TEXT) == set(Status)

COMMAND = Record("command", 16, (
    Word("magic", f"{COMMAND_MAGIC:#010x}."),
    Word("tokens", "Tokens of this batch.", 16),
    Word("layer", "Address of the layer descriptor."),
    Word("slots", "Vectors of a job at most; longer queues are split evenly.", 9),
    Word("chunk_blocks", "Blocks of 32 output columns that are computed and written at a time.", 10),
    Word("chunk_stride", "Distance between chunks in a routed expert's down matrix, divided by 1 + 4 * its bits.", 22),
    Word("shared_chunk_stride", "As chunk_stride, of the shared expert.", 22),
    Word("input", "Address of the input record."),
    Word("hidden", "Address of room for the hidden activations: a line of 64 bytes for each block of each choice."),
    Word("output", "Address of the output, float32 [tokens, 32 * hidden_blocks]."),
    Word("routing", "Address of the routing record."),
    Word("routes", "Address of the given routes, in the form of the routing record; if the layer has such."),
    Word("completion", "Address of the completion record."),
))

LAYER = Record("layer", 64, (
    Word("magic", f"{LAYER_MAGIC:#010x}."),
    Word("hidden_blocks", "Blocks of 32 in an output.", 10),
    Word("input_blocks", "Blocks of 32 in a token: as many, and one more if the layer has biases.", 10),
    Word("inter_blocks", "Blocks of 32 in a routed expert's hidden activations.", 10),
    Word("shared_blocks", "Blocks of 32 in the shared expert's hidden activations; 0: there is none.", 10),
    Word("experts", "Routed experts.", 10),
    Word("top_k", "Experts chosen for a token.", 5),
    Word("normalise", "1: the weights are shares of the sum of the choices' scores; 0: the scores.", 1),
    Word("score", "What becomes of a logit: 0: softmax, 1: sigmoid, 2: square root of softplus.", 2),
    Word("epsilon", "What the sum of scores starts at, in units of 2^-30; at least 1."),
    Word("scale", "A factor of the routed experts' weights: a mantissa of 16 bits, an exponent of 12.", 28),
    Word("correction", "What the correction table is added to: 1 to scores, 2 to logits; 0: there is none.", 2),
    Word("correction_shift", "Left shift of the table's words, to units of 2^-30.", 4),
    Word("group_size", "Experts of a group; 0: experts are chosen from all.", 10),
    Word("groups", "Groups of experts, so many that none is left over.", 6),
    Word("kept_groups", "Groups that experts are chosen from.", 5),
    Word("group_sum", "1: a group's key is the sum of its two largest; 0: its largest.", 1),
    Word("group_zero", "1: experts of other groups have the key 0; 0: they cannot be chosen.", 1),
    Word("shared_gate", "1: the shared expert's weight is the sigmoid of router row `experts`; 0: it is one.", 1),
    Word("given_routes", "1: choices and weights come with the command, and there is no router matrix.", 1),
    Word("activation", "Number of the activation function.", 3),
    Word("gated", "1: the experts have a gate and an up matrix, with rows in turn; 0: one matrix for both.", 1),
    Word("square", "1: without a gate, the activation is multiplied by its argument once more.", 1),
    Word("gate_limit", "The most that a gate may be: a mantissa of 16 bits, an exponent of 12.", 28),
    Word("up_limit", "The most that an up may be.", 28),
    Word("up_lower_limit", "The most that a negative up's magnitude may be.", 28),
    Word("shared_gate_limit", "As gate_limit, of the shared expert.", 28),
    Word("shared_up_limit", "As up_limit, of the shared expert.", 28),
    Word("shared_up_lower_limit", "As up_lower_limit, of the shared expert.", 28),
    Word("softcap", "1: gate and up are capped as factors of the product.", 1),
    Word("gate_cap", "The softcap of the gate: a mantissa of 16 bits, an exponent of 12.", 28),
    Word("gate_cap_inverse", "Its reciprocal; 0: there is no cap.", 28),
    Word("up_cap", "The softcap of up.", 28),
    Word("up_cap_inverse", "Its reciprocal; 0: there is no cap.", 28),
    Word("elements", "1: the codes of all experts are E2M1 elements, of 4 bits; 0: two's complement.", 1),
    Word("shared_bits", "Bits of a code of the shared expert's matrices, at least 2.", 4),
    Word("router_bits", "Bits of a code of the router matrix.", 5),
    Word("router_address", "Offset of the router matrix from this descriptor.", 32),
    Word("expert_down", "Offset of an expert's down matrix from its gate_up matrix, divided by 1 + 4 * its bits.", 22),
    Word("shared_address", "Offset of the shared expert.", 32),
    Word("shared_down", "As expert_down, of the shared expert.", 22),
    Word("router_exponent", "Exponent of the router accumulators at token exponent 0.", 12, True),
    Word("gate_exponent", "Exponent of the gate accumulators at token exponent 0.", 12, True),
    Word("up_exponent", "Exponent of the up accumulators at token exponent 0.", 12, True),
    Word("down_exponent", "Exponent of the down accumulators at hidden exponent 0.", 12, True),
    Word("shared_gate_exponent", "As gate_exponent, of the shared expert.", 12, True),
    Word("shared_up_exponent", "As up_exponent, of the shared expert.", 12, True),
    Word("shared_down_exponent", "As down_exponent, of the shared expert.", 12, True),
    Word("router_shift", "Left shift of the router's least significant pass in the accumulator.", 6, True),
    Word("up_shift", "Left shift of the gate_up matrix's least significant pass.", 6, True),
    Word("down_shift", "Left shift of the down matrix's least significant pass.", 6, True),
    Word("shared_up_shift", "As up_shift, of the shared expert.", 6, True),
    Word("shared_down_shift", "As down_shift, of the shared expert.", 6, True),
    Word("combine_exponent", "Exponent of a combine word at token exponent 0.", 12, True),
))

COUNTERS = (
    Word("cycles", "Cycles from the command's fetch to its completion record."),
    Word("setup", "Cycles of fetching and checking."),
    Word("busy", "Cycles in which the array started a token's block."),
    Word("wait_weights", "Cycles in which the array waited for weights."),
    Word("wait_vectors", "Cycles in which the array had no job because vectors were being loaded."),
    Word("wait_results", "Cycles in which the array waited for room for its results."),
    Word("wait_jobs", "Cycles in which the array had no job for another reason: routing, the end of the batch."),
    Word("output", "Cycles of writing outputs and the routing record."),
    Word("read_words", "Bus words read."),
    Word("write_words", "Bus words written."),
    Word("read_idle", "Cycles in which a read was outstanding and no word came."),
    Word("routing", "Cycles in which the router unit worked."),
)

COMPLETION = Record("completion", 16, (
    Word("status", "Status code."),
    Word("sequence", "Commands completed before this one (modulo 2^32)."),
    *COUNTERS,
    Word("experts_used", "Experts that had at least one token, the shared expert included."),
))
