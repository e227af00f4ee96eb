"""Which layers fit an accelerator, how many tokens at a time, and what a command must at least move and multiply.

The rules are those of the command processor (the status codes of :mod:`moe_hw.registers`), checked before it sees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from moe_hw.arch import PLANES_PER_PASS, ROWS, SEGMENT_ALIGN, Arch, passes_of
from moe_hw.errors import DeviceError
from moe_hw.formats import ROUTER, LayerFormat
from moe_hw.image import expert_bytes, head_bytes, layout_of, quarter_bytes, router_bytes
from moe_hw.registers import COMMAND, COMPLETION
from moe_hw.spec import LayerSpec


@dataclass(frozen=True)
class Footprint:
    """A layer's sizes as the accelerator counts them.

    Parameters:
        spec: the layer.
        arch: sizes of the accelerator.
        bits: bits of a weight code.
        own_widths: those of each routed expert, if they are not all the same.
    """

    spec: LayerSpec
    arch: Arch
    bits: int
    own_widths: tuple[int, ...] = ()

    @classmethod
    def of(cls, spec: LayerSpec, arch: Arch, formats: LayerFormat) -> Footprint:
        """The footprint of a layer in these formats."""
        return cls(spec, arch, formats.format.bits, tuple(form.bits for form in formats.of(spec.router.experts)))

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Bits of each routed expert's codes."""
        return self.own_widths or (self.bits,) * self.spec.router.experts

    @property
    def columns(self) -> int:
        """Columns of the array."""
        return self.arch.columns

    @property
    def router_groups(self) -> int:
        """Words of router logits of one token; 0 if routes are given."""
        return -(-self.spec.router_rows // self.columns)

    @property
    def _widest(self) -> int:
        """Blocks of the longest hidden vector."""
        return max(self.spec.inter_blocks, self.spec.shared_blocks)

    @property
    def vector_blocks(self) -> int:
        """Blocks of the vector buffer that one vector of a job takes: both input halves, or hidden activations."""
        return max(2 * self.spec.input_blocks, self._widest)

    @property
    def choices(self) -> int:
        """Experts of one token, the shared one included."""
        return self.spec.router.top_k + (self.spec.shared is not None)

    def _groups(self, blocks: int) -> int:
        """Column groups of a matrix of ``blocks`` blocks of 32 rows."""
        return -(-ROWS * blocks // self.columns)

    @property
    def token_sums(self) -> int:
        """Words of the combine buffer that a token takes at least, with the smallest chunk."""
        return self._groups(min(self.spec.hidden_blocks, self.arch.chunk_granule)) * self.columns

    def slots(self) -> int:
        """Vectors of the largest job that the accelerator takes; 0 if not even one fits."""
        arch = self.arch
        logits = arch.logit_words // self.router_groups if self.router_groups else arch.slots
        return min(arch.slots, arch.vector_blocks // 2 // self.vector_blocks, logits)

    def chunk_blocks(self, tokens: int) -> int:
        """Blocks of output columns that a batch of ``tokens`` is cut into; 0 if the combine buffer is too small."""
        groups = self.arch.combine_elements // (tokens * self.columns)
        if self._groups(self.spec.hidden_blocks) <= groups:
            return self.spec.hidden_blocks
        granule = self.arch.chunk_granule
        return groups * self.columns // ROWS // granule * granule

    def cut(self, tokens: int) -> dict[str, int]:
        """The words of a command that say how a batch is cut into jobs and chunks."""
        chunk = self.chunk_blocks(tokens)
        strides = (
            quarter_bytes(ROWS * chunk, inter_blocks, self.columns) // self.arch.weight_unit
            for inter_blocks in (self.spec.inter_blocks, self.spec.shared_blocks)
        )
        routed, shared = strides if chunk < self.spec.hidden_blocks else (0, 0)
        return {
            "tokens": tokens,
            "slots": self.slots(),
            "chunk_blocks": chunk,
            "chunk_stride": routed,
            "shared_chunk_stride": shared,
        }

    def _tiles(self, inter_blocks: int) -> int:
        """Tiles of an expert's two matrices."""
        spec = self.spec
        first = self._groups(spec.first_matrices * inter_blocks) * spec.input_blocks
        return first + self._groups(spec.hidden_blocks) * inter_blocks

    def array_cycles(self, tokens: int, choices: Iterable[int]) -> int:
        """Cycles in which the array starts a token's block, with no waiting: its lower bound of a command.

        Parameters:
            tokens: of the command.
            choices: the expert of every choice.
        """
        router_passes = ROUTER.passes * (ROUTER.token_bits // 8)
        router = self.router_groups * self.spec.input_blocks * router_passes
        shared = self._tiles(self.spec.shared_blocks) * len(passes_of(self.bits))
        routed = sum(len(passes_of(self.widths[expert])) for expert in choices)
        return tokens * (router + shared) + routed * self._tiles(self.spec.inter_blocks)

    def vector_cycles(self, tokens: int) -> int:
        """Cycles of the units that take one element at a time: routing, activation, combining."""
        router = self.spec.router_rows * (self.spec.router.top_k + 1)
        times = 1 + self.spec.expert.softcapped  # gate and up come one after the other
        elements = ROWS * (self.spec.hidden_blocks + times * self.spec.inter_blocks) * self.spec.router.top_k
        shared = ROWS * (self.spec.hidden_blocks + times * self.spec.shared_blocks) if self.spec.shared else 0
        return tokens * (router + elements + shared)

    def widest(self, count: int) -> list[int]:
        """So many experts, with the widest codes that there are."""
        return sorted(range(len(self.widths)), key=lambda expert: -self.widths[expert])[:count]

    def weight_bytes(self, experts: Iterable[int]) -> int:
        """Bytes that a command reads of a layer's image if these routed experts have a token."""
        spec, columns = self.spec, self.columns
        routed = sum(expert_bytes(spec, spec.inter_blocks, self.widths[expert], columns) for expert in experts)
        shared = expert_bytes(spec, spec.shared_blocks, self.bits, columns)
        return head_bytes(spec) + router_bytes(spec, columns) + routed + shared

    @property
    def image_bytes(self) -> int:
        """Bytes of the layer's image, its padding included."""
        return layout_of(self.spec, self.arch, self.bits, self.widths).size

    def input_bytes(self, tokens: int) -> int:
        """Bytes of an input record."""
        return tokens * 2 * self.spec.input_blocks * SEGMENT_ALIGN

    def hidden_bytes(self, tokens: int) -> int:
        """Bytes of the room for hidden activations."""
        blocks = self.spec.router.top_k * self.spec.inter_blocks + self.spec.shared_blocks
        return tokens * blocks * SEGMENT_ALIGN

    def output_bytes(self, tokens: int) -> int:
        """Bytes of the outputs."""
        return tokens * self.spec.hidden_blocks * ROWS * 4

    def routing_bytes(self, tokens: int) -> int:
        """Bytes of a routing record: an expert and a weight for each choice, and for the shared expert."""
        return tokens * self.choices * 8

    def token_bytes(self, tokens: int) -> int:
        """Bytes of a command, mantissas and exponents of its inputs, its results and its completion record."""
        inputs = tokens * self.spec.input_blocks * (2 * ROWS + 2)
        records = inputs + self.output_bytes(tokens) + (1 + self.spec.router.given) * self.routing_bytes(tokens)
        return COMMAND.size_bytes + records + COMPLETION.size_bytes

    def max_tokens(self) -> int:
        """Tokens of the largest command that the accelerator takes; 0 if not even one fits."""
        if self.slots() == 0:
            return 0
        return min(self.arch.max_tokens, self.arch.combine_elements // self.token_sums)


def check_layer(spec: LayerSpec, arch: Arch, name: str = "the layer") -> None:
    """Check that one token of a layer fits an accelerator.

    Raises:
        DeviceError: names the size that does not fit, the maximum and the build-time size to enlarge.
    """
    footprint = Footprint(spec, arch, PLANES_PER_PASS)
    sizes = (
        ("experts", spec.router.experts, "max_experts"),
        ("experts per token (top-k)", spec.router.top_k, "max_top_k"),
        ("groups that experts are chosen from", spec.router.groups.kept if spec.router.groups else 0, "max_top_k"),
        (
            f"blocks of the vector buffer, two jobs of one vector (2 x {spec.input_blocks} hidden or "
            f"{max(spec.inter_blocks, spec.shared_blocks)} intermediate)",
            2 * footprint.vector_blocks,
            "vector_blocks",
        ),
        ("sums per token", footprint.token_sums, "combine_elements"),
        (f"words of {arch.columns} router logits per token", footprint.router_groups, "logit_words"),
    )
    for what, size, maximum in sizes:
        if size > getattr(arch, maximum):
            raise DeviceError(
                f"{name} has {size:,} {what}, this accelerator at most {getattr(arch, maximum):,}; "
                f"generate one for a board with a larger {maximum}"
            )


def check_model(
    specs: Sequence[LayerSpec], arch: Arch, formats: Sequence[LayerFormat], memory_bytes: int, name: str
) -> None:
    """Check that all MoE layers of a model fit an accelerator and its memory together.

    Raises:
        DeviceError: names the first layer and size that does not fit, or the bytes that all layers need.
        UsageError: a format is of experts that a layer has not.
    """
    for number, spec in enumerate(specs):
        check_layer(spec, arch, f"MoE layer {number} of {name}")
    total = sum(Footprint.of(spec, arch, form).image_bytes for spec, form in zip(specs, formats, strict=True))
    if total > memory_bytes:
        names = " and ".join(dict.fromkeys(form.name for form in formats))
        raise DeviceError(
            f"{len(specs)} MoE layers of {name} need {total:,} bytes in {names}, the board has {memory_bytes:,}; "
            "choose a narrower format or a board with more memory"
        )
