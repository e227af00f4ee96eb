"""Closed-form cycle model of a layer on a board: what a command will take, without simulating it.

It follows one command through ``docs/design.md``: setup, router, routing, experts, output. An expert takes as long as
the slower of its weights' way from the memory and of its work in the array; the streamer runs ahead across experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from boards import Board
from moe_hw.arch import PLANES_PER_PASS, ROWS, Arch
from moe_hw.formats import ROUTER, WeightFormat
from moe_hw.image import layer_matrices
from moe_hw.limits import Footprint
from moe_hw.registers import COMMAND, LAYER
from moe_hw.spec import LayerSpec

PHASES = ("setup", "router", "routing", "experts", "output")
RESOURCES = ("memory", "multipliers", "latency")

ARRAY_LATENCY = 3 + ROWS + 3 + 8
"""Cycles from the decision to multiply to the accumulator's result: sequencer, array, accumulator."""

POST_LATENCY = 18 + 42 + 3
"""Cycles of SwiGLU, of re-quantising and of writing a hidden block."""

COMBINE_LATENCY = 14
"""Cycles from a result to its sum."""

CHOICE_CYCLES = 8
TOKEN_CYCLES = 60
GATE_CYCLES = 50
"""Cycles of the router unit for each choice, for each token, and for a shared expert's gate."""

START_CYCLES = 10
"""Cycles from the order to read a range to its request on the bus."""


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
    batch = Footprint(spec, arch.columns, form.bits).max_tokens(arch)
    total = Estimate()
    for first in range(0, len(experts), batch):
        chosen = experts[first : first + batch]
        _, counts = np.unique(chosen, return_counts=True)
        total += _Command(spec, board, arch, form, len(chosen)).estimate(counts.tolist())
    return total


class _Command:
    """One command of ``tokens`` tokens."""

    def __init__(self, spec: LayerSpec, board: Board, arch: Arch, form: WeightFormat, tokens: int):
        self.spec = spec
        self.arch = arch
        self.form = form
        self.tokens = tokens
        self.footprint = Footprint(spec, arch.columns, form.bits)
        self.word_bytes = arch.data_bits // 8
        timing = board.memory.timing
        refresh = (timing.tRFC + timing.tRP + timing.tRCD) / timing.tREFI
        pins = board.memory.bytes_per_second / (board.clock_mhz * 1e6)
        self.rate = min(pins * (1 - refresh), self.word_bytes)
        self.latency = (board.memory.controller_ns + timing.tRCD + timing.CL) * board.clock_mhz / 1e3 + START_CYCLES

    def estimate(self, counts: Iterable[int]) -> Estimate:
        """With the tokens of each routed expert that has any."""
        router, gate_up, down, shared_gate_up, shared_down = layer_matrices(
            self.spec, self.form.bits, self.arch.columns
        )
        router_memory, router_array = router / self.rate, self._router_cycles()
        memory = multipliers = 0.0
        jobs = [(count, self.spec.inter_blocks, gate_up + down) for count in counts]
        if self.spec.shared:
            jobs.append((self.tokens, self.spec.shared_blocks, shared_gate_up + shared_down))
        for count, inter_blocks, size in jobs:
            read, multiplied = size / self.rate, self._expert_cycles(count, inter_blocks)
            if read >= multiplied:
                memory += read
            else:
                multipliers += multiplied
        if router_memory >= router_array:
            memory += router_memory
        else:
            multipliers += router_array
        router_phase = self.latency + max(router_memory, router_array) + ARRAY_LATENCY
        phases = {
            "setup": self._setup_cycles(),
            "router": router_phase,
            "routing": self._routing_cycles() + self.latency,
            "experts": memory + multipliers - max(router_memory, router_array) + self._tail_cycles(),
            "output": self._output_cycles(),
        }
        resources = {
            "memory": memory,
            "multipliers": multipliers,
            "latency": sum(phases.values()) - memory - multipliers,
        }
        return Estimate(phases, resources)

    def _setup_cycles(self) -> float:
        """The command, the descriptor and the inputs, one after the other."""
        records = (COMMAND.size_bytes + LAYER.size_bytes) / self.rate
        blocks = self.tokens * self.spec.hidden_blocks
        words = self.footprint.input_bytes(self.tokens) / self.word_bytes
        pieces = blocks * (2 * ROWS // min(self.word_bytes, ROWS) + 1)
        inputs = max(pieces + words, self.footprint.input_bytes(self.tokens) / self.rate)
        return 3 * self.latency + records + inputs

    def _router_cycles(self) -> float:
        vectors = max(PLANES_PER_PASS, self.tokens * (ROUTER.token_bits // 8))
        return self.footprint.router_groups * self.spec.hidden_blocks * ROUTER.passes * vectors

    def _routing_cycles(self) -> float:
        """The router unit, and the walk to the first expert."""
        router = self.spec.router
        scans = 1 if router.normalise else 2
        token = self.spec.router_rows * scans + CHOICE_CYCLES * router.top_k + TOKEN_CYCLES
        return self.tokens * (token + GATE_CYCLES * self.spec.shared_gate)

    def _expert_cycles(self, count: int, inter_blocks: int) -> float:
        """The array's two phases, each group of columns at the speed of the slower of array and its consumer."""
        columns, hidden_blocks = self.arch.columns, self.spec.hidden_blocks
        vectors = self.form.passes * max(PLANES_PER_PASS, count)
        up_groups, down_groups = 2 * ROWS * inter_blocks // columns, ROWS * hidden_blocks // columns
        up = up_groups * max(hidden_blocks * vectors, count * columns // 2)
        down = down_groups * max(inter_blocks * vectors, count * columns)
        return up + self._hidden_cycles() + down

    def _hidden_cycles(self) -> float:
        """From the last product of gate and up to the first of down."""
        return ARRAY_LATENCY + self.arch.columns // 2 + POST_LATENCY + PLANES_PER_PASS

    def _tail_cycles(self) -> float:
        """From the last weight to the last sum."""
        return ARRAY_LATENCY + self.arch.columns + COMBINE_LATENCY

    def _output_cycles(self) -> float:
        """A word of 32 bits a cycle; the last burst goes to the memory when it is complete."""
        size = self.footprint.output_bytes(self.tokens)
        records = self.footprint.routing_bytes(self.tokens)
        last = min(size, self.arch.burst_bytes) / self.rate
        writing = max(size / 4, size / self.rate)
        return writing + last + max(records / 2, records / self.rate) + 2 * self.latency
