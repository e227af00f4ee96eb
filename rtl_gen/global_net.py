"""Signals that reach a whole FPGA, on its clock network in place of thousands of wires."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Instance, Module, Signal, Value
from amaranth.vendor import LatticeECP5Platform


def global_net(m: Module, name: str, value: Value, platform: Any) -> Value:
    """``value``, one bit, on a global net: a reset that goes to tens of thousands of flip-flops.

    On an ECP5 that is the output of a clock buffer, DCCA, which nextpnr puts on the global network whatever it drives.
    Where the platform is none, as in simulation, or another one, it is ``value`` itself.

    Parameters:
        m: gets the buffer, as submodule ``name``.
    """
    if not isinstance(platform, LatticeECP5Platform):
        return value
    net = Signal(name=name)
    m.submodules[name] = Instance("DCCA", i_CLKI=value, o_CLKO=net)
    return net
