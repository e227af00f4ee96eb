"""Running the tools: an answer is made once and whole, and whatever goes wrong is one line."""

import os
import signal
import stat
import sys
import time
from pathlib import Path

import pytest

from moe_hw.errors import SetupError
from rtl_gen import toolchain
from rtl_gen.toolchain import LOG, ToolFailed, make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "synthesis"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tool beside a Python of its own; its argument is a shell command."""
    program = tmp_path / "bin" / "tool"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\neval "$1"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.setattr(toolchain.metadata, "version", lambda package: "1")
    return "tool"


def test_an_answer_is_made_once(cache: Path, tool: str, tmp_path: Path) -> None:
    steps: list[str] = []
    copied = tmp_path / "b"
    copied.write_text("B")

    def run(text: str = "A", argument: str = "cat a b > out; echo said") -> toolchain.Made:
        return make(tool, [argument], {"a": text, "b": copied}, ["out"], "joining", steps.append)

    first = run()
    assert first.fresh and first.text("out") == "AB" and first.text(LOG) == "said\n"
    assert sorted(path.name for path in first.folder.iterdir()) == [LOG, "made.json", "out"]
    again = run()
    assert not again.fresh and (again.folder, again.seconds) == (first.folder, first.seconds)
    assert steps == ["joining"] and list(cache.iterdir()) == [first.folder]
    # Another text, another file, another argument is another answer.
    copied.write_text("C")
    assert run().text("out") == "AC" and run("D").text("out") == "DC"
    assert run(argument="cat b a > out").text("out") == "CA"
    assert len(steps) == 4


def test_another_version_is_another_answer(cache: Path, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make(tool, ["touch out"], {}, ["out"], "x").fresh
    monkeypatch.setattr(toolchain.metadata, "version", lambda package: "2")
    assert make(tool, ["touch out"], {}, ["out"], "x").fresh


@pytest.mark.parametrize("command", ["echo Warning; echo ERROR: odd; exit 1", "echo ERROR: odd"])
def test_a_failure_names_its_error_and_keeps_its_log(cache: Path, tool: str, command: str) -> None:
    with pytest.raises(ToolFailed, match=r"^x failed: ERROR: odd; the log is .*\.log$") as failed:
        make(tool, [command], {}, ["out"], "x")
    assert failed.value.reason == "ERROR: odd"
    assert [path.suffix for path in cache.iterdir()] == [".log"]


def test_a_killed_tool_says_so_and_leaves_nothing(cache: Path, tool: str) -> None:
    with pytest.raises(
        SetupError, match="^x was killed by SIGKILL, .* memory; .*what is done is kept"
    ):
        make(tool, ["touch out; kill -9 $$"], {}, ["out"], "x")
    assert list(cache.iterdir()) == []


def test_who_watches_sees_the_log_and_can_end_it(cache: Path, tool: str, tmp_path: Path) -> None:
    def watch(log: Path) -> None:
        assert log.read_text() == "half\n"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tool, [f"echo $$ > {tmp_path}/pid; echo half; sleep 60"], {}, ["out"], "x", watch=watch)
    assert list(cache.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)


def test_what_a_killed_run_left_goes_after_a_day(cache: Path, tool: str) -> None:
    for name, age in (("partial-old", 2 * 24 * 3600), ("partial-new", 60)):
        (cache / name / "new").mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    make(tool, ["touch out"], {}, ["out"], "x")
    assert sorted(path.name[:11] for path in cache.glob("partial-*")) == ["partial-new"]


def test_a_full_disk_is_one_line(cache: Path, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_LEAST_ROOM", 1 << 62)
    with pytest.raises(SetupError, match="expected room .* for x, got: No space left on device; free space or set"):
        make(tool, ["exit 1"], {}, ["out"], "x")
    assert list(cache.iterdir()) == []


def test_a_cache_without_permission_is_one_line(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path / "file"))
    with pytest.raises(SetupError, match="expected room and permission for x, got: Not a directory"):
        make(tool, ["touch out"], {}, ["out"], "x")


def test_a_missing_tool_says_how_to_get_it(cache: Path) -> None:
    line = "^expected yowasp-none in .*, got no such program; run `make setup` or `pip install yowasp-none`$"
    with pytest.raises(SetupError, match=line):
        make("yowasp-none", [], {}, ["out"], "x")
