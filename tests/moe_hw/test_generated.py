"""A generated directory is whole, reproducible, and refused when it is not what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boards import load_board
from moe_hw.arch import Arch
from moe_hw.errors import DeviceError, SetupError, UsageError
from moe_hw.fit import arch_of
from moe_hw.generated import read_generated, write_generated

BOARD = load_board("ulx3s-85f")
ARCH = arch_of(BOARD)


def write(path: Path, verilog: str = "module moe_hw; endmodule\n", arch: Arch = ARCH) -> Path:
    write_generated(path, BOARD, arch, verilog, {"registers.md": "# Map …\n"}, {"version": "1"})
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    generated = read_generated(write(tmp_path / "deep" / "out"))
    assert (generated.arch, generated.board, generated.verilog) == (ARCH, BOARD, "module moe_hw; endmodule\n")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out"]


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    names = sorted(path.name for path in one.iterdir())
    assert names == ["board.yaml", "manifest.json", "moe_hw.v", "registers.md"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


@pytest.mark.parametrize("name", ["moe_hw.v", "board.yaml", "registers.md"])
def test_changed_or_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "out")
    (path / name).write_text("something else")
    with pytest.raises(DeviceError, match=rf"{name}: expected SHA-256 .* run `moe-hw generate` again"):
        read_generated(path)
    (path / name).unlink()
    with pytest.raises(DeviceError, match="damaged: FileNotFoundError"):
        read_generated(path)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("config", {"columns": 16}, "configuration hash"),
        ("config", {"columns": 5}, "damaged: ArchError"),
        ("config", {"rows": 5}, "damaged: TypeError"),
        ("files", 7, "damaged: AttributeError"),
        ("config_hash", "0x12", "got 0x12"),
    ],
)
def test_changed_manifest_is_refused(tmp_path: Path, key: str, value: object, line: str) -> None:
    path = write(tmp_path / "out") / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(DeviceError, match=line):
        read_generated(path.parent)


def test_other_directories_are_neither_read_nor_replaced(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="which is none; make it first"):
        read_generated(tmp_path / "nothing")
    for text in (None, "{", '{"kind": "a memory image"}'):
        if text is not None:
            (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UsageError, match="was not made by `moe-hw generate`"):
            read_generated(tmp_path)
    with pytest.raises(UsageError, match="exists and was not made by `moe-hw generate`"):
        write(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="exists and was not made"):
        write(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "manifest.json"]


def test_earlier_one_is_replaced_and_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "notes.txt").write_text("of the user")
    path = write(tmp_path / "out", "new")
    assert read_generated(path).verilog == "new"
    assert not (path / "notes.txt").exists()


def test_failed_write_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "out", "old")

    def full(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(SetupError, match="cannot write .*: No space left on device"):
            write(path, "new")
    assert read_generated(path).verilog == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
