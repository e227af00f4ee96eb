"""Running programs, and the folders of what they made."""

import sys
from pathlib import Path

import pytest

from moe_hw import tools


def test_cache_moves_with_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    assert tools.cache_root("kind") == tmp_path / "kind"
    monkeypatch.delenv("MOE_HW_CACHE")
    assert tools.cache_root("kind") == Path.home() / ".cache" / "moe-hw" / "kind"


def test_run_gives_output_and_exit_code(tmp_path: Path) -> None:
    script = "import os, sys; print(os.getcwd()); print('bad', file=sys.stderr); sys.exit(7)"
    with (tmp_path / "log").open("w") as log:
        assert tools.run([sys.executable, "-c", script], tmp_path, log.fileno()) == 7
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted([str(tmp_path.resolve()), "bad"])


@pytest.mark.parametrize(
    ("log", "line"), [("", "no output"), ("a\nb\n\n", "b"), ("a\n  ERROR: x\nerror: y\nb\n", "ERROR: x")]
)
def test_first_error(log: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(log)
    assert tools.first_error(tmp_path / "log") == line
