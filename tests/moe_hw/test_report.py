"""Reports add up."""

from __future__ import annotations

from moe_hw.registers import COUNTERS
from moe_hw.report import Report


def measured(first: int) -> Report:
    counters = {word.name: first + at for at, word in enumerate(COUNTERS)}
    return Report(1, first, counters, frozenset({first, 3}), first, 2 * first, 3 * first, 4.0 * first, 5 * first)


def test_sum_adds_every_field_and_joins_the_experts() -> None:
    total = measured(10) + measured(100)
    assert total.commands == 2 and total.tokens == 110
    assert total.counters == {word.name: 110 + 2 * at for at, word in enumerate(COUNTERS)}
    assert total.experts == {3, 10, 100} and total.experts_used == 3
    assert total.dram_bytes == 3 * 110
    assert (total.necessary_bytes, total.memory_limit_cycles, total.compute_limit_cycles) == (330, 440.0, 550)
    assert total.cycles == 110
    assert (total.memory_fraction, total.compute_fraction) == (4.0, 5.0)


def test_empty_report_is_neutral_and_has_no_division_by_zero() -> None:
    assert Report() + measured(7) == measured(7)
    assert Report().memory_fraction == Report().compute_fraction == 0.0
