"""Synthesis of the default accelerator for its board against the estimate of ``moe-hw generate``; calling the tools."""

import json
from pathlib import Path

import pytest

from boards import DEFAULT_BOARD, load_board
from moe_hw.errors import SetupError
from moe_hw.fit import arch_of, estimate
from rtl_gen import synthesis
from rtl_gen.accelerator import Accelerator
from rtl_gen.emit import to_verilog
from rtl_gen.synthesis import ECP5, ULTRASCALE_PLUS, Resources, count, parse_report, place_and_route

BLOCK_RAM_KBITS = 18

COUNTER = """
module counter(input clk, input d, output reg [7:0] q);
  always @(posedge clk) q <= q * q + d;
endmodule
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    return tmp_path / "synthesis"


def test_default_board_fits_as_estimated() -> None:
    board = load_board(DEFAULT_BOARD)
    arch = arch_of(board)
    used = count(to_verilog(Accelerator(arch), "moe_hw"), "moe_hw", ECP5, "-noflatten")

    needs = estimate(board, arch)
    assert used.dsps == needs["dsps"] <= board.fpga.dsps
    assert used.luts == pytest.approx(needs["luts"], rel=0.1)
    assert used.luts <= 0.52 * board.fpga.luts
    assert used.block_rams * BLOCK_RAM_KBITS <= board.fpga.bram_kbits


def test_an_answer_is_made_once(cache: Path) -> None:
    steps: list[str] = []
    first = count(COUNTER, "counter", ECP5, progress=steps.append)
    assert first.luts > 0 and first.flip_flops == 8 and first.block_rams == 0
    assert count(COUNTER, "counter", ECP5, progress=steps.append) == first
    assert steps == ["synthesis, synth_ecp5"]
    assert [path.suffix for path in cache.iterdir()] == [".json"]

    # Another flow, or another text, is another answer.
    assert count(COUNTER, "counter", ULTRASCALE_PLUS, progress=steps.append) != first
    count(COUNTER.replace("q * q", "q"), "counter", ECP5, progress=steps.append)
    assert len(steps) == 3


def test_place_and_route_depends_on_the_seed_alone(cache: Path) -> None:
    steps: list[str] = []
    first = place_and_route(COUNTER, "counter", 1, steps.append)
    assert first.fmax > 50
    assert first.start.startswith("q") and first.end.startswith("q")
    assert first.logic + first.routing == pytest.approx(1000 / first.fmax, rel=0.01)
    assert place_and_route(COUNTER, "counter", 1, steps.append) == first
    place_and_route(COUNTER, "counter", 2, steps.append)
    assert steps == ["synthesis for place and route", "place and route, seed 1", "place and route, seed 2"]


def test_a_failure_names_its_error_and_leaves_nothing_behind(cache: Path) -> None:
    with pytest.raises(SetupError, match=r"synth_ecp5 failed: .*ERROR.*; the log is .*\.log$"):
        count("module wrong(", "wrong", ECP5)
    assert [path.suffix for path in cache.iterdir()] == [".log"]


def test_a_missing_tool_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "YOSYS", "yowasp-none")
    with pytest.raises(SetupError, match="^expected yowasp-none in .*, got no such program; run `make setup`$"):
        count(COUNTER, "counter", ECP5)


def test_a_cache_without_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path / "file"))
    with pytest.raises(SetupError, match="expected room and permission for synthesis, .*, got: Not a directory"):
        count(COUNTER, "counter", ECP5)


REPORT = """
{"fmax": {"$glbnet$clk": {"achieved": 87.5, "constraint": 100}},
 "critical_paths": [
  {"from": "<async>", "to": "posedge $glbnet$clk", "path": []},
  {"from": "posedge $glbnet$clk", "to": "posedge $glbnet$clk", "path": [
   {"type": "clk-to-q", "delay": 0.5, "from": {"cell": "a_ff"}, "to": {"cell": "a_ff"}},
   {"type": "routing", "delay": 2.0, "from": {"cell": "a_ff"}, "to": {"cell": "lut"}},
   {"type": "logic", "delay": 0.25, "from": {"cell": "lut"}, "to": {"cell": "lut"}},
   {"type": "routing", "delay": 1.0, "from": {"cell": "lut"}, "to": {"cell": "b_ff"}},
   {"type": "setup", "delay": 0.0, "from": {"cell": "b_ff"}, "to": {"cell": "b_ff"}}]}]}
"""


def test_report_gives_the_slowest_path_between_registers() -> None:
    timing = parse_report(REPORT)
    assert (timing.fmax, timing.start, timing.end) == (87.5, "a_ff", "b_ff")
    assert (timing.cells, timing.logic, timing.routing) == (1, 0.75, 3.0)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", REPORT.replace("posedge", "negedge"), REPORT.replace("achieved", "x")]
)
def test_other_reports_are_refused(text: str) -> None:
    with pytest.raises(SetupError, match="expected a report with one clock"):
        parse_report(text)


def test_cells_are_counted_by_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {"LUT4": 5, "CCU2C": 3, "PFUMX": 9, "TRELLIS_DPR16X4": 1, "TRELLIS_FF": 7}
    monkeypatch.setattr(synthesis, "_run", lambda *_: json.dumps({"design": {"num_cells_by_type": cells}}))
    assert count("", "top", ECP5) == Resources(luts=15, flip_flops=7, dsps=0, block_rams=0)
    cells = {"LUT6": 5, "RAM32M16": 1, "FDRE": 7, "RAMB18E2": 3, "RAMB36E2": 1}
    assert count("", "top", ULTRASCALE_PLUS) == Resources(luts=13, flip_flops=7, dsps=0, block_rams=2.5)
