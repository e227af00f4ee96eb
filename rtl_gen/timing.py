"""What nextpnr reports: how fast each clock is and why, and what the netlist takes of the device."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_hw.errors import SetupError

_GLOBAL = "$glbnet$"
"""nextpnr's prefix of nets that it moved to the clock network."""

_MADE_NAME = re.compile(
    r"(_(TRELLIS_FF|LUT4|CCU2C|PFUMX|L6MUX21|MULT18X18D|DP16KD|PDPW16KD|TRELLIS_DPR16X4)(_.*)?|\$[A-Z].*)$"
)
"""What Yosys and nextpnr append to the name of a signal to name the cells that make it."""


@dataclass(frozen=True)
class Timing:
    """The answer of one place and route for one clock.

    Attributes:
        clock: the net.
        target: MHz that were asked for.
        fmax: highest clock in MHz.
        start, end: signals at both ends of the slowest path, in the generator's names.
        cells: LUTs, carries and so on between them.
        logic, routing: nanoseconds of that path, setup and clock-to-output in ``logic``.
    """

    clock: str
    target: float
    fmax: float
    start: str
    end: str
    cells: int
    logic: float
    routing: float

    @property
    def met(self) -> bool:
        return self.fmax >= self.target


@dataclass(frozen=True)
class Report:
    """All clocks, and ``(used, available)`` of each kind of cell."""

    clocks: tuple[Timing, ...]
    cells: Mapping[str, tuple[int, int]]


def parse_report(text: str) -> Report:
    """nextpnr's ``--report``.

    Raises:
        SetupError: the report is of another version's form.
    """
    try:
        report = json.loads(text)
        paths = {path["from"]: path["path"] for path in report["critical_paths"] if path["from"] == path["to"]}
        return Report(
            tuple(
                _timing(net.removeprefix(_GLOBAL), speed, paths[f"posedge {net}"])
                for net, speed in report["fmax"].items()
            ),
            {name: (int(kind["used"]), int(kind["available"])) for name, kind in report["utilization"].items()},
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise SetupError(
            f"expected a report of nextpnr 0.11 with the slowest path of each clock, got {error!r}; "
            "install the version of constraints.txt"
        ) from None


def _timing(net: str, speed: Mapping[str, Any], path: list[Mapping[str, Any]]) -> Timing:
    routes = [part for part in path if part["type"] == "routing"]
    return Timing(
        clock=net,
        target=float(speed["constraint"]),
        fmax=float(speed["achieved"]),
        start=own_name(path[0]["from"]["cell"]),
        end=own_name(path[-1]["to"]["cell"]),
        cells=len(routes) - 1,
        logic=sum(part["delay"] for part in path) - sum(part["delay"] for part in routes),
        routing=sum(part["delay"] for part in routes),
    )


def own_name(cell: str) -> str:
    """The signal of the generator that ``cell`` was made for."""
    return _MADE_NAME.sub("", cell) or cell
