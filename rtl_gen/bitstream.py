"""From a board's design to its bitstream: synthesise, place and route over several seeds, pack.

Each step is kept by its content (:mod:`rtl_gen.toolchain`), so a build that was ended goes on where it stopped.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from moe_hw.errors import UsageError
from rtl_gen import floorplan
from rtl_gen.board_design import TOP, BoardDesign
from rtl_gen.synthesis import ECP5, Resources, resources_of
from rtl_gen.timing import Report, Timing, parse_report
from rtl_gen.toolchain import ECPPACK, LOG, NEXTPNR, YOSYS, Made, ToolFailed, is_kept, make

CLOCK_TOLERANCE = 1e-3
"""Relative difference of two frequencies that are the same: nextpnr counts in whole picoseconds."""

Watch = Callable[[str, str], None]
"""Called about once a second with a step's name and the last line of its log."""

StepDone = Callable[[str, Made | None, str], None]
"""Called after a step with its name, what it made, if anything, and one line about it."""

MOST_PASSES = 100
"""Of the router: twice as many as a full device needs."""

BITSTREAM = "top.bit"
BLOCK_RAM_BITS = 18 * 1024


class Ended(Exception):
    """The user interrupted: the tools of all seeds are ended."""


class _Endless(Exception):
    """The router goes on, as some connection misses its clock on whatever way."""


@dataclass(frozen=True)
class Netlist:
    """The design in cells of the FPGA: as Yosys made it, and with the sites of its floorplan."""

    made: Made
    resources: Resources
    placed: str


@dataclass(frozen=True)
class Routing:
    """One seed's answer; ``report`` is None if it could not be placed and routed, for ``reason``."""

    seed: int
    made: Made | None
    report: Report | None
    reason: str = ""

    @property
    def slack(self) -> float:
        """The slowest clock's Fmax over its target; 0 without a report."""
        return min((clock.fmax / clock.target for clock in self.report.clocks), default=1.0) if self.report else 0.0

    @property
    def met(self) -> bool:
        """All clocks reach their targets."""
        return self.report is not None and all(clock.met for clock in self.report.clocks)


def synthesise(design: BoardDesign, watch: Watch) -> Netlist:
    """Yosys' netlist of the design.

    Raises:
        SetupError: Yosys is missing, fails or is killed, or the disk is full.
    """
    reads = "; ".join(
        f"{'read_rtlil' if name.endswith('.il') else 'read_verilog'} {name}" for name in sorted(design.sources)
    )
    script = f"{reads}; {ECP5.script(TOP, '-json netlist.json')}; tee -q -o stat.json stat -json -top {TOP}"
    made = make(
        YOSYS, ["-p", script], design.sources, ("netlist.json", "stat.json"), "synthesis",
        watch=lambda log: watch("synthesise", _last_line(log)),
    )  # fmt: skip
    netlist = json.loads(made.text("netlist.json"))
    floorplan.apply(netlist["modules"][TOP]["cells"], design.places)
    return Netlist(made, resources_of(json.loads(made.text("stat.json")), ECP5), json.dumps(netlist))


def place_and_route(design: BoardDesign, netlist: Netlist, seed: int, watch: Watch) -> Routing:
    """nextpnr's answer to one seed. A design that cannot be placed or routed is an answer too.

    Raises:
        SetupError: nextpnr is missing or killed, or the disk is full.
    """
    # A clock that no constraint reaches is held against the fastest of all.
    arguments = [*design.device, "--json", "netlist.json", "--lpf", "pins.lpf", "--seed", str(seed)]
    arguments += ["--freq", f"{max(design.clocks.values()):g}", "--timing-allow-fail"]
    # The default router does not end on a full device.
    arguments += ["--router", "router2"]
    files = ["--report", "report.json", "--textcfg", "routed.config"]
    # The first way routes anew what misses its clock; nextpnr repeats that for hours if it does not help.
    rerouted, once = [*arguments, "--tmg-ripup", *files], [*arguments, *files]
    inputs, outputs = {"netlist.json": netlist.placed, "pins.lpf": design.constraints}, ("report.json", "routed.config")
    step = f"seed {seed}"

    def watched(log: Path) -> None:
        watch(step, _last_line(log))

    def bounded(log: Path) -> None:
        watched(log)
        _bound(log)

    def run(options: Sequence[str], watch_log: Callable[[Path], None]) -> Made:
        return make(NEXTPNR, options, inputs, outputs, f"place and route, {step}", watch=watch_log)

    try:
        try:
            # What is kept of the second way was made because the first one had no end.
            if is_kept(NEXTPNR, once, inputs, outputs) and not is_kept(NEXTPNR, rerouted, inputs, outputs):
                raise _Endless
            made = run(rerouted, bounded)
            _bound(made.folder / LOG)  # its last passes were not watched
        except _Endless:
            made = run(once, watched)
    except ToolFailed as error:
        return Routing(seed, None, None, str(error))
    report = parse_report(made.text("report.json"))
    return Routing(seed, made, Report(named(report.clocks, design), report.cells))


def named(clocks: Sequence[Timing], design: BoardDesign) -> tuple[Timing, ...]:
    """The clocks of a report under the names of their domains, in the design's order.

    Raises:
        UsageError: a clock runs at none of the design's frequencies, or none runs at one of them: a constraint is
            missing, or names what does not exist.
    """
    found: dict[str, Timing] = {}
    for clock in clocks:
        domains = [name for name, mhz in design.clocks.items() if abs(clock.target / mhz - 1) < CLOCK_TOLERANCE]
        if not domains:
            known = ", ".join(f"{name} {mhz:g}" for name, mhz in design.clocks.items())
            raise UsageError(
                f"clock {clock.clock}: expected one of the design's frequencies ({known} MHz), got "
                f"{clock.target:g} MHz; add it to the design's clocks"
            )
        # Two nets of one frequency: the slower one decides.
        name = next((name for name in domains if name not in found), domains[0])
        if name not in found or clock.fmax < found[name].fmax:
            found[name] = Timing(**{**clock.__dict__, "clock": name})
    for name, mhz in design.clocks.items():
        if name not in found:
            raise UsageError(
                f"clock {name}: expected a clock of {mhz:g} MHz in the routed design, got none; constrain its pin"
            )
    return tuple(found[name] for name in design.clocks)


def place_and_route_all(
    design: BoardDesign, netlist: Netlist, seeds: Sequence[int], jobs: int, watch: Watch, done: StepDone
) -> list[Routing]:
    """Place and route with each of ``seeds``, ``jobs`` at a time. An interruption ends them all.

    Raises:
        SetupError: as :func:`place_and_route`.
        UsageError: no seed could be placed and routed, or :func:`named` refuses the clocks.
    """
    ended = threading.Event()

    def watched(step: str, line: str) -> None:
        if ended.is_set():
            raise Ended
        watch(step, line)

    def run(seed: int) -> Routing:
        if ended.is_set():
            raise Ended
        routing = place_and_route(design, netlist, seed, watched)
        done(f"seed {seed}", routing.made, _speeds(routing))
        return routing

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, seed) for seed in seeds]
        try:
            wait(futures)  # if one fails, what the others have done so far is not thrown away
        except BaseException:
            ended.set()
            raise
    routings = [future.result() for future in futures]
    if all(routing.report is None for routing in routings):
        raise UsageError(
            f"{routings[0].reason}; no seed fits, so lower accelerator.columns or the sizes of its buffers"
        )
    return routings


def pack(routing: Routing, watch: Watch) -> Made:
    """The bitstream ``BITSTREAM`` of a routed design.

    Raises:
        SetupError: ecppack is missing or fails, or the disk is full.
    """
    assert routing.made is not None
    config = routing.made.folder / "routed.config"
    arguments = ["--compress", "--input", "routed.config", "--bit", BITSTREAM]
    return make(
        ECPPACK, arguments, {"routed.config": config}, (BITSTREAM,), "packing",
        watch=lambda log: watch("pack", _last_line(log)),
    )  # fmt: skip


def _speeds(routing: Routing) -> str:
    if routing.report is None:
        return routing.reason
    return ", ".join(f"{clock.clock} {clock.fmax:.1f} of {clock.target:.1f} MHz" for clock in routing.report.clocks)


def _bound(log: Path) -> None:
    """Raise ``_Endless`` behind the last pass that is allowed."""
    if _passes(log) > MOST_PASSES:
        raise _Endless


def _passes(log: Path) -> int:
    """Passes of the router so far."""
    return max(map(int, re.findall(r"\biter=(\d+) ", log.read_text(errors="replace"))), default=0)


def _last_line(log: Path) -> str:
    """The last whole line of a log that is being written."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines[:-1]) if line.strip()), "")
