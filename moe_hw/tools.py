"""Runs the programs of others, and says where what they made is kept."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_WATCH_S = 1.0
"""Seconds between two calls of ``watch``."""


def cache_root(kind: str) -> Path:
    """The folder of one kind of results that are kept by their content; ``MOE_HW_CACHE`` moves all of them."""
    return Path(os.environ.get("MOE_HW_CACHE") or Path.home() / ".cache" / "moe-hw").absolute() / kind


def run(
    command: Sequence[str],
    folder: Path,
    output: int,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], None] | None = None,
) -> int:
    """Exit code of ``command``, negative for a signal. It has its own process group, so that Ctrl-C ends its children.

    Parameters:
        command: program and arguments.
        folder: working directory.
        output: file descriptor that gets what it prints.
        environment: all of its variables; without it those of this process.
        watch: called every second while it runs; if it raises, the command is ended.
    """
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        while True:
            try:
                return process.wait(None if watch is None else _WATCH_S)
            except subprocess.TimeoutExpired:
                assert watch is not None
                watch()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def first_error(log: Path) -> str:
    """The line of a log that says best why the program failed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no output")
