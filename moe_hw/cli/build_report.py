"""What ``moe-hw build`` says of its result: tables for the terminal, and the same for its record."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_hw.arch import ROWS, Arch
from moe_hw.cli.console import table

if TYPE_CHECKING:
    from rtl_gen.bitstream import Routing

_RESOURCES = (
    ("LUT4", "TRELLIS_COMB"),
    ("flip-flop", "TRELLIS_FF"),
    ("multiplier", "MULT18X18D"),
    ("block RAM, 18 kbit", "DP16KD"),
    ("distributed RAM, 64 bit", "TRELLIS_RAMW"),
)
"""What the table shows, and nextpnr's name of it."""


def peak(arch: Arch, mhz: float) -> float:
    """Multiply-accumulates a second of codes of up to five bits: every processing element, every cycle."""
    return ROWS * arch.columns * mhz * 1e6


def as_dict(routing: Routing) -> dict[str, Any]:
    """What the record says of the seed that was chosen."""
    assert routing.report is not None
    clocks = {
        clock.clock: {"target_mhz": clock.target, "fmax_mhz": clock.fmax, "from": clock.start, "to": clock.end}
        for clock in routing.report.clocks
    }
    cells = {
        name: dict(zip(("used", "available"), routing.report.cells[kind], strict=True)) for name, kind in _RESOURCES
    }
    return {"seed": routing.seed, "timing_met": routing.met, "clocks": clocks, "resources": cells}


def tables(best: Routing, routings: Sequence[Routing]) -> str:
    """Resources, and every clock with its slowest path and the median of all seeds."""
    assert best.report is not None
    resources = []
    for name, kind in _RESOURCES:
        used, available = best.report.cells[kind]
        resources.append((name, f"{used:,}", f"{available:,}", f"{used / available:.0%}"))
    clocks = []
    for index, clock in enumerate(best.report.clocks):
        path = f"{clock.start} to {clock.end}: {clock.cells} cells {clock.logic:.1f} ns, wires {clock.routing:.1f} ns"
        median = statistics.median(routing.report.clocks[index].fmax for routing in routings if routing.report)
        met = "met" if clock.met else "failed"
        clocks.append((clock.clock, path, f"{clock.target:.1f}", f"{clock.fmax:.1f}", f"{median:.1f}", met))
    return "\n\n".join(
        (
            table(("resource", "used", "available", "of it"), resources),
            table(("clock", "slowest path", "target MHz", "MHz", "median", "timing"), clocks, left=2),
        )
    )


def too_slow(best: Routing, output: Path) -> str:
    """The message of a build whose timing is not met."""
    assert best.report is not None
    failed = (clock for clock in best.report.clocks if not clock.met)
    slow = ", ".join(f"{clock.clock} {clock.fmax:.1f} of {clock.target:.1f}" for clock in failed)
    return (
        f"{output}: expected every clock to reach its target, got {slow} MHz with seed {best.seed}, the best; "
        "there is no bitstream: try more --seeds, or lower clock_mhz of the board"
    )
