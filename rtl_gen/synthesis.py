"""What a module takes and how fast it is, alone, from Yosys and nextpnr."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rtl_gen.timing import Timing, parse_report
from rtl_gen.toolchain import NEXTPNR, YOSYS, Progress, make

DEVICE = ("--85k", "--package", "CABGA381", "--speed", "6")
"""The FPGA of a ULX3S in its slowest grade."""

CLOCK_PIN = 'LOCATE COMP "clk" SITE "G2";\n'
"""Where a ULX3S has its oscillator: next to the global clock network, which a clock from elsewhere may miss."""

TARGET_MHZ = 100
"""What nextpnr aims at. It goes on beyond it, but for the shortest path only."""


@dataclass(frozen=True)
class Family:
    """How Yosys maps to an FPGA family, and how much of its resources each cell takes."""

    flow: str
    """Yosys' command, and how it goes about it."""
    luts: Mapping[str, float]
    flip_flops: Mapping[str, float]
    dsps: Mapping[str, float]
    block_rams: Mapping[str, float]

    def script(self, top: str, options: str = "") -> str:
        """What Yosys does with the sources it has read."""
        return f"{KEEP_COPIES}; {self.flow} -top {top} {options}"


KEEP_COPIES = "proc; select -set copies w:* a:keep=1 %i %ci1 t:$*dff* %i; setattr -set keep 1 @copies; select -clear"
"""Yosys keeps wires with the attribute ``keep``, but not the flip-flops that drive them, see ``rtl_gen.emit``."""

ECP5 = Family(
    # No block relies on what comes of a word that is read while it is written. Where Yosys has to see to it, it delays
    # every write to a block RAM and compares its address with every read.
    "synth_ecp5 -no-rw-check",
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
    script = f"read_verilog in.v; {family.script(top, options)}; tee -q -o stat.json stat -json -top {top}"
    made = make(
        YOSYS, ["-q", "-p", script], {"in.v": verilog}, ["stat.json"], f"synthesis, {family.flow}", progress
    )  # fmt: skip
    return resources_of(json.loads(made.text("stat.json")), family)


def resources_of(stat: Mapping[str, Any], family: Family) -> Resources:
    """Resources of the design that Yosys' ``stat -json`` counts."""
    cells = stat["design"]["num_cells_by_type"]

    def taken(sizes: Mapping[str, float]) -> float:
        return sum(size * cells.get(name, 0) for name, size in sizes.items())

    luts, flip_flops, dsps = (int(taken(sizes)) for sizes in (family.luts, family.flip_flops, family.dsps))
    return Resources(luts, flip_flops, dsps, taken(family.block_rams))


def place_and_route(verilog: str, top: str, seed: int, progress: Progress | None = None) -> Timing:
    """Timing of module ``top``, which has a port ``clk`` and few others, on ``DEVICE``.

    Raises:
        SetupError: a tool is missing or fails, or the disk is full.
    """
    script = f"read_verilog in.v; {ECP5.script(top, '-json netlist.json')}"
    title = "synthesis for place and route"
    made = make(YOSYS, ["-q", "-p", script], {"in.v": verilog}, ["netlist.json"], title, progress)
    # router1, the default, takes clock enables along good ways; router2 is for designs that fill the device.
    arguments = [*DEVICE, "-q", "--json", "in.json", "--lpf", "in.lpf", "--lpf-allow-unconstrained"]
    arguments += ["--freq", str(TARGET_MHZ), "--timing-allow-fail", "--seed", str(seed), "--report", "report.json"]
    inputs = {"in.json": made.folder / "netlist.json", "in.lpf": CLOCK_PIN}
    routed = make(NEXTPNR, arguments, inputs, ["report.json"], f"place and route, seed {seed}", progress)
    (timing,) = parse_report(routed.text("report.json")).clocks
    return timing
