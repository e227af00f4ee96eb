"""The build-time sizes of one accelerator: what a bitstream fixes, as opposed to what a descriptor says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

ROWS = 32
"""Rows of the array, elements of a block of the block floating point format."""

PLANES_PER_PASS = 4
"""Bit planes of an array pass but a tile's first, which takes 2 to 5: codes of up to 5 bits take one pass."""

TILES_PER_SCALE_BEAT = 4
"""Tiles whose scales (8 bits a column) fill one beat of 32 bits a column."""

SEGMENT_ALIGN = 64
"""Bytes. Everything a descriptor points at starts on such a boundary; addresses count in this unit."""

INTERLEAVE = 256
"""Bytes after which the next channel of a memory has its turn: less than an AXI burst, so that one uses several."""

ROUTER_SLOTS = 32
"""Vectors of one of the router's jobs: so few that most tokens of a batch are routed while others are multiplied."""

MAX_GROUPS = 32
"""Groups of experts, for routers that choose groups first."""

LONGEST_RUN = 16
"""Lines of hidden activations that are written as one burst at most: 1024 bytes."""

E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)
"""Magnitudes of the elements of MXFP4, in halves (OCP Microscaling Formats v1.0, 5.3.3)."""

ACC_BITS = 48
"""Bits of a scale-accumulator and of a combine word."""

EXP_BITS = 12
"""Bits of every signed exponent inside the accelerator."""

EXP_MIN = -(1 << EXP_BITS - 1)
"""Exponent of a zero inside the accelerator."""

EXP_ZERO = -200
"""Exponent that a block of zeros is given."""


def passes_of(bits: int) -> list[int]:
    """Bit planes of each array pass of codes of 2 bits or more, the most significant pass first."""
    passes = (bits + 2) // PLANES_PER_PASS
    return [bits - PLANES_PER_PASS * (passes - 1)] + [PLANES_PER_PASS] * (passes - 1)


def most_lanes(columns: int) -> int:
    """Elements a cycle that ``columns`` columns can feed: a column group is left four cycles."""
    return columns // 4


class ArchError(ValueError):
    """A combination of sizes that cannot be built."""


@dataclass(frozen=True)
class Arch:
    """Sizes that are fixed when the RTL is generated. Shapes within them are chosen at run time.

    Attributes:
        columns: output neurons the array works on at a time, in all sub-arrays; two share a multiplier.
        channels: sub-arrays that the columns are dealt to. If there are several, each reads its weights through a port
            of its own from its own channel of the memory.
        data_bits: width of every AXI4 data bus in bits.
        addr_bits: width of an AXI4 byte address.
        burst_bytes: longest AXI4 burst, a power of two that divides 4096.
        vector_blocks: depth of a row's vector bank, in blocks of 32 elements; the vectors of two jobs share it.
        expert_beats: depth of the expert buffer in beats of ``32 * columns`` bits.
        max_tokens: tokens of one command.
        slots: vectors of one job, depth of the accumulators: a longer queue is split into several jobs.
        max_experts: routed experts of a layer.
        max_top_k: experts chosen for a token.
        logit_words: depth of the logit memory in words of ``columns`` logits.
        combine_elements: output elements (tokens x columns of a chunk) that are summed at a time.
        lanes: elements that the activation function and the writer take in a cycle.
    """

    columns: int = 8
    channels: int = 1
    data_bits: int = 32
    addr_bits: int = 32
    burst_bytes: int = 512
    vector_blocks: int = 2048
    expert_beats: int = 2048
    max_tokens: int = 64
    slots: int = 16
    max_experts: int = 256
    max_top_k: int = 12
    logit_words: int = 512
    combine_elements: int = 16384
    lanes: int = 1

    def __post_init__(self) -> None:
        def require(ok: bool, what: str) -> None:
            if not ok:
                raise ArchError(what)

        def power(name: str, low: int, high: int) -> None:
            value = getattr(self, name)
            ok = isinstance(value, int) and low <= value <= high and value & (value - 1) == 0
            require(ok, f"{name}: expected a power of two from {low} to {high}, got {value!r}")

        power("channels", 1, 32)
        power("columns", 4 * self.channels, 128 * self.channels)
        power("data_bits", 32, 8 * SEGMENT_ALIGN)
        power("burst_bytes", 64, 4096)
        power("vector_blocks", 64, 1 << 17)
        power("expert_beats", 64, 1 << 16)
        power("max_tokens", 1, 4096)
        power("slots", 1, 256)
        power("max_experts", 2, 512)
        power("logit_words", 2, 1 << 16)
        power("combine_elements", 64, 1 << 20)
        power("lanes", 1, 16)
        require(
            isinstance(self.max_top_k, int) and 1 <= self.max_top_k <= 16,
            f"max_top_k: expected 1 to 16, got {self.max_top_k!r}",
        )
        require(
            isinstance(self.addr_bits, int) and 24 <= self.addr_bits <= 38,
            f"addr_bits: expected 24 to 38, got {self.addr_bits!r}",
        )
        columns = self.columns // self.channels
        require(
            self.data_bits <= ROWS * columns,
            f"data_bits: expected at most a beat of {ROWS * columns} bits ({columns} columns x 32), "
            f"got {self.data_bits}; choose more columns or a narrower bus",
        )
        require(
            self.lanes <= most_lanes(self.columns) and 32 * self.lanes <= self.data_bits,
            f"lanes: expected at most a quarter of the {self.columns} columns, and 32 bits each within the bus of "
            f"{self.data_bits}, got {self.lanes}",
        )
        require(
            self.burst_bytes * 8 >= self.data_bits * 2,
            f"burst_bytes: expected at least two bus words of {self.data_bits} bits, got {self.burst_bytes}",
        )

    @property
    def sub_array(self) -> Arch:
        """Sizes of one sub-array, whose weights have the addresses within its channel."""
        columns = self.columns // self.channels
        addr_bits = self.addr_bits - (self.channels - 1).bit_length()
        return dataclasses.replace(
            self, columns=columns, channels=1, addr_bits=addr_bits, lanes=min(self.lanes, most_lanes(columns))
        )

    @property
    def segment_bytes(self) -> int:
        """Bytes on whose multiples a layer's image and its segments start: the same place in every channel."""
        return SEGMENT_ALIGN if self.channels == 1 else self.channels * INTERLEAVE

    @property
    def weight_unit(self) -> int:
        """Bytes that an address of weights counts in: 64 of every channel."""
        return SEGMENT_ALIGN * self.channels

    @property
    def combine_lanes(self) -> int:
        """Elements that the combine buffer takes in a cycle.

        Twice ``lanes``, as a column group of down has twice the elements of one of gate_up.
        """
        return min(2 * self.lanes, most_lanes(self.columns))

    @property
    def run_lines(self) -> int:
        """Lines of hidden activations that are written as one burst."""
        return min(LONGEST_RUN, self.burst_bytes // SEGMENT_ALIGN)

    @property
    def beat_bits(self) -> int:
        """Bits of a beat, of all sub-arrays together: one bit for each multiplier input of the array."""
        return ROWS * self.columns

    @property
    def beat_bytes(self) -> int:
        return self.beat_bits // 8

    @property
    def words_per_beat(self) -> int:
        """Bus words that are collected to one beat."""
        return self.beat_bits // self.data_bits

    @property
    def chunk_granule(self) -> int:
        """Blocks of output columns whose tiles begin on a scale beat and on 64 bytes, whatever the expert's width."""
        groups = TILES_PER_SCALE_BEAT * max(1, SEGMENT_ALIGN * 8 // self.sub_array.beat_bits)
        return max(1, groups * self.columns // ROWS)

    @property
    def queue_entries(self) -> int:
        """Places in the expert queues: every choice of every token, and its shared expert."""
        return self.max_tokens * (self.max_top_k + 1)

    def as_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    @property
    def hash(self) -> int:
        """64-bit hash of the sizes and of the layout version, the one that a CSR shows."""
        from moe_hw.registers import LAYOUT_VERSION

        text = json.dumps({"layout": LAYOUT_VERSION, **self.as_dict()}, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
