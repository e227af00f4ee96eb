"""What ``moe-hw build`` leaves in the folder ``build`` of a generated directory: the bitstream and a record of it.

The record is written last and at once. Without it a build is not finished; without a bitstream in it, its timing
failed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_hw.errors import DeviceError, TimingError, UsageError

FOLDER = "build"
RECORD = "build.json"
BITSTREAM = "moe_hw.bit"
KIND = "moe-hw bitstream"


@dataclass(frozen=True)
class Built:
    """A bitstream whose timing was met, found unchanged; ``loader`` is openFPGALoader's name of its board."""

    path: Path
    loader: str


def fresh_folder(out: Path) -> Path:
    """The folder for a build of the generated directory ``out``, without what an earlier build left."""
    folder = out / FOLDER
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    return folder


def write_record(folder: Path, bitstream: Path | None, notes: Mapping[str, Any]) -> None:
    """Complete a build.

    Parameters:
        folder: of :func:`fresh_folder`.
        bitstream: a file to copy; None if its timing is not met.
        notes: further keys of the record, JSON types; ``loader`` among them.
    """
    digest = None
    if bitstream is not None:
        shutil.copyfile(bitstream, folder / BITSTREAM)
        digest = _digest(folder / BITSTREAM)
    partial = folder / f".{RECORD}"
    partial.write_text(json.dumps({"kind": KIND, "sha256": digest, **notes}, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / RECORD)


def read_built(out: Path) -> Built:
    """The bitstream in the generated directory ``out``.

    Raises:
        UsageError: there is none, or its build was not finished.
        TimingError: its timing was not met.
        DeviceError: a file is missing or changed.
    """
    folder = out / FOLDER
    again = f"run `moe-hw build {out}`"
    if not folder.is_dir():
        raise UsageError(f"expected a directory with a bitstream, got {out}, which has none; {again}")
    if not (folder / RECORD).exists():
        raise UsageError(f"{out}: expected a finished build, got one that was ended or failed; {again} to go on")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["kind"] != KIND:
            raise ValueError(f"kind {record['kind']}")
        if record["sha256"] is None:
            raise TimingError(
                f"{out}: expected a bitstream whose timing is met, got a build without; "
                f"{again} --seeds with more of them, or lower clock_mhz of its board"
            )
        if _digest(folder / BITSTREAM) != record["sha256"]:
            raise DeviceError(f"{folder / BITSTREAM}: expected the bitstream that was built, got another; {again}")
        return Built(folder / BITSTREAM, str(record["loader"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeviceError(f"{folder} is damaged: {type(error).__name__} {error}; {again}") from None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
