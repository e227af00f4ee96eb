"""A directory made by ``moe-hw generate``: the Verilog of an accelerator and what is needed to use it.

The manifest names the SHA-256 of every file. A directory is written beside its place and renamed into it, so one
that exists is whole; it depends on its inputs alone, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boards import Board, as_yaml, load_board
from moe_hw.arch import Arch, ArchError
from moe_hw.errors import DeviceError, SetupError, UsageError

MANIFEST = "manifest.json"
VERILOG = "moe_hw.v"
BOARD = "board.yaml"
KIND = "moe-hw accelerator"


@dataclass(frozen=True)
class Generated:
    """A generated accelerator, read back and found unchanged."""

    arch: Arch
    board: Board
    verilog: str


def write_generated(
    path: Path, board: Board, arch: Arch, verilog: str, extra: Mapping[str, str], notes: Mapping[str, Any]
) -> None:
    """Write the directory ``path``; an earlier one of this kind is replaced.

    Parameters:
        path: the directory.
        board: what the accelerator is for.
        arch: its sizes.
        verilog: its RTL.
        extra: further files, text by name.
        notes: further keys of the manifest, JSON types.

    Raises:
        UsageError: ``path`` exists and is something else.
        SetupError: the file system refuses.
    """
    path = path.resolve()
    check_writable(path)
    files = {VERILOG: verilog, BOARD: as_yaml(board), **extra}
    manifest = {
        "kind": KIND,
        "board": board.name,
        "config": arch.as_dict(),
        "config_hash": f"{arch.hash:#018x}",
        "files": {name: _digest(text) for name, text in sorted(files.items())},
        **notes,
    }
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            fresh = Path(folder) / "new"
            fresh.mkdir()
            for name, text in files.items():
                (fresh / name).write_text(text, encoding="utf-8")
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            if path.exists():
                path.rename(Path(folder) / "old")
            fresh.rename(path)
    except OSError as error:
        raise _cannot_write(path, error) from None


def check_writable(path: Path) -> None:
    """Check, before anything that takes long, that the directory ``path`` can be written; makes its parents.

    Raises:
        UsageError: ``path`` exists and was not made by ``moe-hw generate``.
        SetupError: the file system refuses.
    """
    path = path.resolve()
    if path.exists() and not _replaceable(path):
        raise UsageError(f"{path} exists and was not made by `moe-hw generate`; choose another directory or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from None


def names_generated(target: str) -> bool:
    """Whether ``target`` means such a directory, not a board's name or YAML file."""
    path = Path(target)
    return path.is_dir() or ("/" in target and path.suffix not in (".yaml", ".yml"))


def read_generated(path: Path) -> Generated:
    """Read the directory ``path``.

    Raises:
        UsageError: there is no such directory, or it was not made by ``moe-hw generate``.
        DeviceError: a file is missing or changed, or it was made for another layout version.
    """
    if not path.is_dir():
        raise UsageError(f"expected a directory made by `moe-hw generate`, got {path}, which is none; make it first")
    manifest = _manifest(path)
    if manifest is None:
        raise UsageError(f"{path} was not made by `moe-hw generate`: it has no valid {MANIFEST}; generate it first")
    again = "run `moe-hw generate` again"
    try:
        for name, digest in manifest["files"].items():
            found = _digest((path / name).read_text(encoding="utf-8"))
            if found != digest:
                raise DeviceError(f"{path / name}: expected SHA-256 {digest[:16]}…, got {found[:16]}…; {again}")
        arch = Arch(**manifest["config"])
        if f"{arch.hash:#018x}" != manifest["config_hash"]:
            raise DeviceError(
                f"{path}: expected configuration hash {arch.hash:#018x} of this version, "
                f"got {manifest['config_hash']}; {again}"
            )
        return Generated(arch, load_board(path / BOARD), (path / VERILOG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ArchError) as error:
        raise DeviceError(f"{path} is damaged: {type(error).__name__} {error}; {again}") from None


def _cannot_write(path: Path, error: OSError) -> SetupError:
    return SetupError(f"cannot write {path}: {error.strerror or error}; choose another directory")


def _manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a directory of this kind, else None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == KIND else None


def _replaceable(path: Path) -> bool:
    return path.is_dir() and (not os.listdir(path) or _manifest(path) is not None)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
