"""All that an FPGA is to hold: sources, pins and clocks; :mod:`rtl_gen.bitstream` makes a bitstream of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amaranth.lib import wiring
from amaranth.vendor import LatticeECP5Platform

from rtl_gen.emit import blank_memories, to_verilog
from rtl_gen.floorplan import Place

TOP = "top"
"""Name of the outermost module."""

_DEVICES = {"LFE5U-85F": "--85k", "LFE5UM5G-85F": "--um5g-85k"}
_PACKAGES = {"BG381": "CABGA381", "BG554": "CABGA554"}
"""What nextpnr calls the parts of the boards that have a top level."""


@dataclass(frozen=True)
class BoardDesign:
    """The contents of one ECP5.

    Attributes:
        sources: RTLIL (``.il``) and Verilog (``.v``) texts by file name; the outermost module is ``TOP``.
        constraints: LPF text: pins, their electrical types and the clocks that come in.
        device: nextpnr's arguments for device, package and speed grade.
        clocks: MHz that each clock domain runs at; those of a PLL follow from its input and dividers.
        places: sites of cells that the placer is not to choose.
    """

    sources: Mapping[str, str]
    constraints: str
    device: tuple[str, ...]
    clocks: Mapping[str, float]
    places: tuple[Place, ...] = ()


def for_platform(design: Any, platform: LatticeECP5Platform, clocks: Mapping[str, float]) -> BoardDesign:
    """Elaborate ``design`` for ``platform``; nothing but Amaranth runs.

    Parameters:
        design: an elaboratable that requests its pins from the platform. Its ``repeated`` blocks, if it has any, are
            emitted beside it as in :func:`rtl_gen.emit.to_verilog`.
        platform: a fresh instance of a class of ``amaranth_boards``, such as ``ULX3S_85F_Platform()``.
        clocks: MHz by clock domain. A clock that is none of these frequencies fails the build.
    """
    with blank_memories():
        # Without paths and lines, so that no edit of a comment makes another netlist to route.
        files = platform.prepare(design, TOP, emit_src=False).files
    sources = {f"{TOP}.il": _text(files[f"{TOP}.il"])}
    repeated: Mapping[str, wiring.Component] = getattr(design, "repeated", {})
    for name, block in repeated.items():
        sources[f"{name}.v"] = to_verilog(block, name)
    device = (_DEVICES[platform.device], "--package", _PACKAGES[platform.package], "--speed", platform.speed)
    return BoardDesign(sources, _text(files[f"{TOP}.lpf"]), device, dict(clocks))


def _text(content: str | bytes) -> str:
    return content if isinstance(content, str) else content.decode()
