"""Verilog from components. Blocks that occur many times are emitted once and instantiated by name."""

from __future__ import annotations

import re

from amaranth.back import rtlil, verilog
from amaranth.hdl import ClockSignal, Instance, ResetSignal
from amaranth.lib import wiring


def instance(name: str, component: wiring.Component, ports: wiring.PureInterface | object) -> Instance:
    """An instance of the module ``name``, whose Verilog ``to_verilog`` emits once from ``component``.

    Parameters:
        name: Verilog module name, a key of the parent's ``repeated``.
        component: the block that is instantiated; only its signature is read. Its members are plain signals.
        ports: an interface of the block's signature, flipped or not, whose members are connected.
    """
    connections = {}
    for member, description in component.signature.members.items():
        prefix = "i" if description.flow is wiring.In else "o"
        connections[f"{prefix}_{member}"] = getattr(ports, member)
    return Instance(name, i_clk=ClockSignal(), i_rst=ResetSignal(), **connections)


def to_verilog(component: wiring.Component, name: str) -> str:
    """The Verilog of ``component`` as module ``name``, and of every block in its ``repeated`` mapping.

    The text depends on the component alone: no paths, no dates.
    """
    texts = [_convert(component, name)]
    for block_name, block in getattr(component, "repeated", {}).items():
        texts.append(_convert(block, block_name))
    return "\n".join(texts)


def _convert(component: wiring.Component, name: str) -> str:
    text = rtlil.convert(component, name=name, emit_src=False)
    # What `verilog.convert` does, but for the zeros between its two steps.
    return verilog._convert_rtlil_text(_ZERO_MEMORY.sub("", text), strip_internal_attrs=True)


_ZERO_MEMORY = re.compile(r"^ *cell \$meminit_v2 [^\n]*\n(?: *parameter [^\n]*\n| *connect \\ADDR [^\n]*\n)*"
                          r" *connect \\DATA \d+'0+\n.*?^ *end\n", re.MULTILINE | re.DOTALL)
"""A memory's initial contents of nothing but zeros: no block relies on them, and Yosys takes minutes for large ones."""
