"""Cycle model of a layer on a board: what a command will take, without simulating it.

It follows one command through ``docs/design.md``, job by job: the weights of a job arrive when the memory has moved all
before them, its vectors when they have been gathered, and the array takes as long as the slower of its work and of
its weights' arrival. Nothing in it depends on values, only on how many tokens chose each expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from boards import Board
from moe_hw.arch import PLANES_PER_PASS, ROUTER_SLOTS, ROWS, SEGMENT_ALIGN, Arch, passes_of
from moe_hw.formats import ROUTER, WeightFormat
from moe_hw.image import matrix_bytes, router_bytes
from moe_hw.limits import Footprint
from moe_hw.registers import COMMAND, COMPLETION, LAYER
from moe_hw.spec import LayerSpec

PHASES = ("setup", "router", "routing", "experts", "output")
RESOURCES = ("memory", "multipliers", "latency")

ARRAY_LATENCY = 3 + ROWS + 3 + 8
"""Cycles from the decision to multiply to the accumulator's result: sequencer, array, accumulator."""

POST_LATENCY = 34 + 42 + 8
"""Cycles of the activation function, of re-quantising and of the order to write a hidden block."""

COMBINE_LATENCY = 15
"""Cycles from a result to its sum."""

SCAN_CYCLES = 38
SOFTMAX_CYCLES = 64
CHOOSE_CYCLES = 10
ROUTE_CYCLES = 10
DIVIDE_CYCLES = 30
"""Cycles of the router unit for a scan beyond one for each expert, for a softmax over all experts beyond two for each,
for the choices beyond one for each, for each route, and for a sum's reciprocal."""

SCORE_LATENCY = 24
"""Cycles from a choice's logit to its term."""

GIVEN_CYCLES = 3
"""Cycles of the expert queues for each given route."""

SLOT_CYCLES = 5
"""Cycles of the dispatcher for each slot."""

START_CYCLES = 10
"""Cycles from the order to read a range to its request on the bus."""

ENTRY_CYCLES = 4
"""Cycles of an entry of the routing record."""

OUTSTANDING = 16
"""Bursts that the memory may owe when a vector is asked for."""


@dataclass(frozen=True)
class Estimate:
    """Cycles of one or more commands; estimates add up with ``+``, and ``*`` repeats one.

    Attributes:
        phases: cycles of each of ``PHASES``.
        resources: the same cycles by what they waited for, ``RESOURCES``; latency is all that is neither of the others.
    """

    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    resources: dict[str, float] = field(default_factory=lambda: dict.fromkeys(RESOURCES, 0.0))

    @property
    def cycles(self) -> int:
        return round(sum(self.phases.values()))

    @property
    def limit(self) -> str:
        """The resource that most of the cycles wait for."""
        return max(self.resources, key=lambda name: self.resources[name])

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            {name: self.phases[name] + other.phases[name] for name in PHASES},
            {name: self.resources[name] + other.resources[name] for name in RESOURCES},
        )

    def __mul__(self, count: int) -> Estimate:
        return Estimate(
            {name: cycles * count for name, cycles in self.phases.items()},
            {name: cycles * count for name, cycles in self.resources.items()},
        )


def estimate(spec: LayerSpec, board: Board, arch: Arch, form: WeightFormat, experts: np.ndarray) -> Estimate:
    """Cycles of a layer.

    Parameters:
        spec: the layer.
        board: clock and memory.
        arch: the accelerator, one that the layer fits.
        form: format of the experts' weights.
        experts: the routed experts of each token, ``[tokens, top_k]``.
    """
    batch = Footprint(spec, arch, form.bits).max_tokens()
    total = Estimate()
    for first in range(0, len(experts), batch):
        chosen = experts[first : first + batch]
        _, counts = np.unique(chosen, return_counts=True)
        total += _Command(spec, board, arch, form, len(chosen)).estimate(counts.tolist())
    return total


class _Command:
    """One command of ``tokens`` tokens, at the cycle that the model has come to.

    Attributes:
        array: when the array has finished the last job; ``before`` when it had finished the one before.
        memory: when the memory has moved all that was asked for.
        memory_bound, array_bound: cycles in which the array waited for weights, and in which it multiplied.
    """

    def __init__(self, spec: LayerSpec, board: Board, arch: Arch, form: WeightFormat, tokens: int):
        self.spec = spec
        self.arch = arch
        self.form = form
        self.tokens = tokens
        self.footprint = Footprint(spec, arch, form.bits)
        timing = board.memory.timing
        refresh = (timing.tRFC + timing.tRP + timing.tRCD) / timing.tREFI
        self.rate = min(board.memory_bytes_per_cycle * (1 - refresh), arch.channels * arch.data_bits // 8)
        self.bus = min(self.rate, arch.data_bits // 8)
        # A run of hidden activations is written between reads of weights: the pins turn around and back.
        self.turnaround = (timing.tWTR_L + timing.CL + timing.tRTW) * board.clock_mhz / 1e3
        self.latency = (board.memory.controller_ns + timing.tRCD + timing.CL) * board.clock_mhz / 1e3 + START_CYCLES
        self.array = self.before = self.memory = self.dispatched = 0.0
        self.memory_bound = self.array_bound = 0.0

    def estimate(self, counts: Sequence[int]) -> Estimate:
        """With the tokens of each routed expert that has any."""
        spec, tokens = self.spec, self.tokens
        ends = [self._setup()]
        routed = self._router(ends[0])
        ends.append(self.array)
        shared = [(tokens, spec.shared_blocks)] if spec.shared else []
        routed_jobs = [(count, spec.inter_blocks) for count in counts]
        for count, inter_blocks in shared:
            self._up(count, inter_blocks, ends[0])
        ends.append(max(self.array, routed))
        for count, inter_blocks in routed_jobs:
            self._up(count, inter_blocks, routed)
        self.dispatched = self.array + ARRAY_LATENCY + self._post_cycles + POST_LATENCY
        self.dispatched += self.latency
        chunk_blocks = self.footprint.chunk_blocks(tokens)
        stored = 0.0
        for first in range(0, spec.hidden_blocks, chunk_blocks):
            blocks = min(chunk_blocks, spec.hidden_blocks - first)
            for count, inter_blocks in shared + routed_jobs:
                self._down(count, inter_blocks, blocks)
            summed = self.array + ARRAY_LATENCY + self.arch.columns // self.arch.combine_lanes + COMBINE_LATENCY
            self.dispatched = summed + self._store(blocks)
            stored += self.dispatched - self.array
        ends.append(self.dispatched - stored)
        ends.append(self.dispatched + self._records())
        phases = dict(zip(PHASES, np.diff([0, *ends]).tolist(), strict=True))
        latency = sum(phases.values()) - self.memory_bound - self.array_bound
        return Estimate(phases, {"memory": self.memory_bound, "multipliers": self.array_bound, "latency": latency})

    def _setup(self) -> float:
        """The command and the descriptor, one after the other."""
        self.array = self.before = self.memory = self.dispatched = (
            2 * self.latency + (COMMAND.size_bytes + LAYER.size_bytes) / self.rate
        )
        return self.array

    def _router(self, known: float) -> float:
        """The router's jobs; returns when all tokens are routed."""
        spec, footprint = self.spec, self.footprint
        if spec.router.given:
            return known + self.latency + GIVEN_CYCLES * self.tokens * footprint.choices
        size = router_bytes(spec, self.arch.columns)
        router = spec.router
        scan = router.experts + SCAN_CYCLES
        if router.groups is not None:
            scan += router.experts + SCAN_CYCLES + router.groups.kept
        if router.score == "softmax" and (router.keyed or not router.normalise):
            scan += 2 * router.experts + SOFTMAX_CYCLES
        scan += router.top_k + spec.shared_gate + CHOOSE_CYCLES
        emit = ROUTE_CYCLES * footprint.choices + DIVIDE_CYCLES
        routed = 0.0
        for count in self._parts(self.tokens, ROUTER_SLOTS):
            vectors = max(PLANES_PER_PASS, count * (ROUTER.token_bits // 8))
            cycles = footprint.router_groups * spec.input_blocks * ROUTER.passes * vectors
            self._job(count, 2 * spec.input_blocks, size, cycles, known)
            routed = max(routed, self.array + ARRAY_LATENCY) + count * max(scan, emit)
        return routed + emit + SCORE_LATENCY + self.latency

    def _up(self, tokens: int, inter_blocks: int, known: float) -> None:
        columns, input_blocks = self.arch.columns, self.spec.input_blocks
        rows = self.spec.first_matrices * ROWS * inter_blocks
        groups = -(-rows // columns)
        size = matrix_bytes(rows, input_blocks, self.form.bits, columns)
        for count in self._parts(tokens):
            lines = count * inter_blocks
            written = lines * SEGMENT_ALIGN + lines / self.arch.run_lines * self.turnaround * self.rate
            drain = count * self._post_cycles
            cycles = groups * max(input_blocks * self._tile(count), drain)
            self._job(count, input_blocks, size + written, cycles, known)

    @property
    def _post_cycles(self) -> int:
        """Cycles in which a column group's accumulators of a vector become hidden activations."""
        return self.arch.columns // self.spec.first_matrices // self.arch.lanes * (1 + self.spec.expert.softcapped)

    def _down(self, tokens: int, inter_blocks: int, blocks: int) -> None:
        columns = self.arch.columns
        groups = -(-ROWS * blocks // columns)
        size = matrix_bytes(ROWS * blocks, inter_blocks, self.form.bits, columns)
        for count in self._parts(tokens):
            cycles = groups * max(inter_blocks * self._tile(count), count * columns // self.arch.combine_lanes)
            self._job(count, inter_blocks, size, cycles, 0)

    def _tile(self, vectors: int) -> int:
        """Cycles of a tile in the array."""
        return sum(max(planes, vectors) for planes in passes_of(self.form.bits))

    def _parts(self, vectors: int, most: int | None = None) -> Iterator[int]:
        """A queue's jobs of at most ``most`` vectors."""
        parts = -(-vectors // min(self.footprint.slots(), most or vectors))
        for part in range(parts):
            yield vectors // parts + (part < vectors % parts)

    def _job(self, vectors: int, blocks: int, size: float, cycles: float, known: float) -> None:
        """A job of ``vectors`` of ``blocks`` each, with ``size`` bytes of weights, ``known`` from that cycle on."""
        # The vectors are asked for when the job before has begun and the one before that has left its half.
        asked = max(self.dispatched, self.before, known)
        vector_bytes = vectors * blocks * SEGMENT_ALIGN
        gathered = vector_bytes / self.bus
        waiting = min(max(self.memory - asked, 0), OUTSTANDING * self.arch.burst_bytes / self.rate)
        loaded = asked + max(SLOT_CYCLES * vectors, waiting + gathered) + self.latency
        # Weights run ahead of the array as far as the expert buffer goes.
        ahead = self.arch.expert_beats * self.arch.beat_bytes / self.rate
        self.memory = max(self.memory, known, self.array - ahead) + (size + vector_bytes) / self.rate
        start = max(self.array, loaded)
        arrived = self.memory + self.latency
        end = max(start + cycles, arrived)
        if arrived > start + cycles:
            self.memory_bound += min(end - self.array, size / self.rate)
        else:
            self.array_bound += cycles
        self.before, self.array, self.dispatched = self.array, end, start

    def _store(self, blocks: int) -> float:
        """A chunk's outputs on their way to memory."""
        elements = self.tokens * ROWS * blocks
        bursts = self.tokens * -(-4 * ROWS * blocks // self.arch.burst_bytes)
        return max(elements / self.arch.lanes + 2 * bursts, 4 * elements / self.bus) + self.latency

    def _records(self) -> float:
        """The routing record."""
        size = self.footprint.routing_bytes(self.tokens) + COMPLETION.size_bytes
        return max(ENTRY_CYCLES * self.tokens * self.footprint.choices, size / self.bus) + self.latency
