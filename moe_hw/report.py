"""What a device measured while it ran, next to what the same work must cost at least."""

from __future__ import annotations

from dataclasses import dataclass, field

from moe_hw.registers import COUNTERS


@dataclass(frozen=True)
class Report:
    """Sums over the commands of one or more calls; reports add up with ``+``.

    Attributes:
        commands: commands the device completed.
        tokens: tokens of all commands.
        counters: the device's counters by name, see :data:`moe_hw.registers.COUNTERS`.
        experts: routed experts that had at least one token.
        dram_read_bytes: bytes that crossed the bus to the accelerator.
        dram_write_bytes: bytes that crossed it from the accelerator.
        necessary_bytes: bytes that these commands cannot do without: every expert in use once a command.
        memory_limit_cycles: cycles that the memory's pins need for ``necessary_bytes``.
        compute_limit_cycles: cycles that the array needs if it never waits.
    """

    commands: int = 0
    tokens: int = 0
    counters: dict[str, int] = field(default_factory=lambda: {word.name: 0 for word in COUNTERS})
    experts: frozenset[int] = frozenset()
    dram_read_bytes: int = 0
    dram_write_bytes: int = 0
    necessary_bytes: int = 0
    memory_limit_cycles: float = 0.0
    compute_limit_cycles: int = 0

    @property
    def cycles(self) -> int:
        """Cycles from each command's fetch to its completion record."""
        return self.counters["cycles"]

    @property
    def dram_bytes(self) -> int:
        return self.dram_read_bytes + self.dram_write_bytes

    @property
    def experts_used(self) -> int:
        """Number of different routed experts that had a token."""
        return len(self.experts)

    @property
    def memory_fraction(self) -> float:
        """Part of the cycles that the memory limit explains; 1 is a memory that never idled."""
        return self.memory_limit_cycles / self.cycles if self.cycles else 0.0

    @property
    def compute_fraction(self) -> float:
        """Part of the cycles that the array's limit explains; 1 is an array that never waited."""
        return self.compute_limit_cycles / self.cycles if self.cycles else 0.0

    def __add__(self, other: Report) -> Report:
        return Report(
            commands=self.commands + other.commands,
            tokens=self.tokens + other.tokens,
            counters={name: self.counters[name] + other.counters[name] for name in self.counters},
            experts=self.experts | other.experts,
            dram_read_bytes=self.dram_read_bytes + other.dram_read_bytes,
            dram_write_bytes=self.dram_write_bytes + other.dram_write_bytes,
            necessary_bytes=self.necessary_bytes + other.necessary_bytes,
            memory_limit_cycles=self.memory_limit_cycles + other.memory_limit_cycles,
            compute_limit_cycles=self.compute_limit_cycles + other.compute_limit_cycles,
        )
