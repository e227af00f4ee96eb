"""The record of a build: written last, and without it nothing counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_hw import built
from moe_hw.built import fresh_folder, read_built, write_record
from moe_hw.errors import TimingError, UsageError


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    bits = tmp_path / "bits"
    bits.write_bytes(b"\x00\xff")
    write_record(fresh_folder(tmp_path), bits, {"loader": "ulx3s"})
    found = read_built(tmp_path)
    assert found.loader == "ulx3s" and found.path.read_bytes() == b"\x00\xff"
    # A new build begins without it.
    assert list(fresh_folder(tmp_path).iterdir()) == []


def test_a_build_is_finished_by_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    bits = tmp_path / "bits"
    bits.write_bytes(b"bits")
    monkeypatch.setattr(built.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_record(fresh_folder(tmp_path), bits, {"loader": "ulx3s"})
    with pytest.raises(UsageError, match="expected a finished build, got one that was ended or failed; run"):
        read_built(tmp_path)


def test_a_build_without_timing_has_no_bitstream(tmp_path: Path) -> None:
    folder = fresh_folder(tmp_path)
    write_record(folder, None, {"loader": "ulx3s"})
    assert [path.name for path in folder.iterdir()] == [built.RECORD]
    with pytest.raises(TimingError, match="expected a bitstream whose timing is met"):
        read_built(tmp_path)
    assert TimingError.exit_code == 6
