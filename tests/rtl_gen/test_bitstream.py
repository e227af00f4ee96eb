"""The steps from a design to a bitstream; ``test_cli_build`` runs all of them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from moe_hw.errors import SetupError, UsageError
from rtl_gen import bitstream
from rtl_gen.bitstream import MOST_PASSES, Netlist, Routing, named, place_and_route, place_and_route_all, synthesise
from rtl_gen.board_design import BoardDesign
from rtl_gen.synthesis import Resources
from rtl_gen.timing import Report, Timing
from rtl_gen.toolchain import LOG, Made
from tests.rtl_gen.stand_in import stand_in

DESIGN = BoardDesign({}, "", (), {"sync": 80.0, "mem": 400 / 3, "again": 80.0})
NETLIST = Netlist(Made(Path(), 1.0, True), Resources(0, 0, 0, 0), "")


def clock(net: str, target: float, fmax: float = 100.0) -> Timing:
    return Timing(net, target, fmax, "a", "b", 1, 1.0, 1.0)


def routing(seed: int, *speeds: float) -> Routing:
    """A seed's answer with one clock of 80 MHz for each of ``speeds``."""
    return Routing(seed, NETLIST.made, Report(tuple(clock("x", 80, speed) for speed in speeds), {}))


def test_clocks_get_the_names_of_their_domains() -> None:
    clocks = [clock("$x", 80.0, 90), clock("dq.clk", 133.33, 140), clock("$y", 80.0, 85), clock("$z", 80.0, 81)]
    assert [(found.clock, found.fmax) for found in named(clocks, DESIGN)] == [
        ("sync", 81),
        ("mem", 140),
        ("again", 85),
    ]


@pytest.mark.parametrize(
    ("clocks", "line"),
    [
        ([clock("osc", 25)], "clock osc: expected one of the design's frequencies .sync 80, .*, got 25 MHz; add it to"),
        ([clock("a", 80), clock("b", 80)], "clock mem: expected a clock of 133.333 MHz in the routed design, got none"),
        ([clock("a", 80.1)], "got 80.1 MHz"),
    ],
)
def test_a_clock_that_nothing_constrains_is_an_error(clocks: list[Timing], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        named(clocks, DESIGN)


def test_a_lost_constraint_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    design = stand_in()
    pins = "\n".join(line for line in design.constraints.splitlines() if not line.startswith("FREQUENCY"))
    design = dataclasses.replace(design, constraints=pins)
    netlist = synthesise(design, lambda *_: None)
    with pytest.raises(UsageError, match="^clock sync: expected a clock of 80 MHz in the routed design, got none"):
        place_and_route(design, netlist, 1, lambda *_: None)


def test_what_no_way_is_short_enough_for_is_routed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nextpnr has 1,500 passes of it, which are hours of a full device."""
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    design = stand_in(chain=4)
    netlist = synthesise(design, lambda *_: None)
    first = place_and_route(design, netlist, 1, lambda *_: None)
    assert first.made is not None and first.made.fresh and not first.met
    assert 0 < bitstream._passes(first.made.folder / LOG) <= MOST_PASSES
    again = place_and_route(design, netlist, 1, lambda *_: None)
    assert again.made is not None and not again.made.fresh and again.made.folder == first.made.folder


def test_the_slowest_clock_decides() -> None:
    assert routing(1, 88, 160).slack == pytest.approx(1.1) and routing(1, 88, 80).met
    assert routing(1, 88, 79.9).slack < 1 and not routing(1, 88, 79.9).met
    assert Routing(1, None, None, "why").slack == 0 and not Routing(1, None, None, "why").met


def run_all(monkeypatch: pytest.MonkeyPatch, answer: Any, jobs: int = 2) -> tuple[list[Routing], list[str]]:
    """What all of three seeds give when ``answer(seed, watch)`` is the answer to one, and the steps that are done."""
    done: list[str] = []
    monkeypatch.setattr(bitstream, "place_and_route", lambda design, netlist, seed, watch: answer(seed, watch))
    routings = place_and_route_all(
        DESIGN, NETLIST, (1, 2, 3), jobs, lambda *_: None, lambda *step: done.append(step[0])
    )
    return routings, done


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_all_seeds_are_tried_in_their_order(jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    routings, done = run_all(monkeypatch, lambda seed, watch: routing(seed, 80 + seed), jobs)
    assert [answer.seed for answer in routings] == [1, 2, 3]
    assert sorted(done) == ["seed 1", "seed 2", "seed 3"]


def test_a_seed_that_is_killed_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def answer(seed: int, watch: Any) -> Routing:
        watch(f"seed {seed}", "line")
        tried.append(seed)
        if seed == 1:
            raise SetupError("seed 1 was killed")
        return routing(seed, 90)

    with pytest.raises(SetupError, match="seed 1 was killed"):
        run_all(monkeypatch, answer)
    assert sorted(tried) == [1, 2, 3]


def test_an_interruption_ends_all_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def answer(seed: int, watch: Any) -> Routing:
        try:
            while True:
                watch(f"seed {seed}", "line")
        except bitstream.Ended:
            ended.append(seed)
            raise

    def interrupted(futures: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bitstream, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(monkeypatch, answer)
    assert 3 not in ended  # it had not begun


def test_the_last_whole_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text, line in (
        ("", ""),
        ("half", ""),
        ("one\ntwo", "one"),
        ("one\n\n", "one"),
        ("x" * 5000 + "\nlast\n", "last"),
    ):
        log.write_text(text)
        assert bitstream._last_line(log) == line
