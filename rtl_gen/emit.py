"""Verilog from components. Blocks that occur many times are emitted once and instantiated by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from amaranth.back import rtlil, verilog
from amaranth.hdl import ClockSignal, Instance, ResetSignal, Value
from amaranth.lib import wiring

OF_ITS_OWN = {"keep": 1}
"""Attributes of a register that stays in each copy of its block, near it. Synthesis makes one of equal registers, with
a wire to all places; ``rtl_gen.synthesis.KEEP_COPIES`` keeps it from that."""


def instance(
    name: str, signature: wiring.Signature, ports: wiring.PureInterface | object, reset: Value | None = None
) -> Instance:
    """An instance of the module ``name``, whose Verilog ``to_verilog`` emits once from a block.

    Parameters:
        name: Verilog module name, a key of the parent's ``repeated``.
        signature: of that block.
        ports: an interface of the block's signature whose members are connected.
        reset: of the block, in place of that of the domain ``sync``.
    """
    connections = {}
    for path, description, value in signature.flatten(ports):
        prefix = "i" if description.flow is wiring.In else "o"
        connections[f"{prefix}_{'__'.join(map(str, path))}"] = value
    return Instance(name, i_clk=ClockSignal(), i_rst=ResetSignal() if reset is None else reset, **connections)


def connections(signature: wiring.Signature, ports: Any, prefix: str) -> dict[str, Any]:
    """Arguments of an ``Instance`` of a foreign module that drives ``ports``, an interface of ``signature``.

    Parameters:
        prefix: of the names in Verilog.
    """
    return {
        f"{'o' if member.flow is wiring.Out else 'i'}_{prefix}{name}": getattr(ports, name)
        for name, member in signature.members.items()
    }


def to_verilog(component: wiring.Component, name: str) -> str:
    """The Verilog of ``component`` as module ``name``, and of every block in its ``repeated`` mapping.

    The text depends on the component alone: no paths, no dates.
    """
    texts = [_convert(component, name)]
    for block_name, block in getattr(component, "repeated", {}).items():
        texts.append(_convert(block, block_name))
    return "\n".join(texts)


@contextmanager
def blank_memories() -> Iterator[None]:
    """Memories are emitted without initial contents of nothing but zeros; no block relies on them."""
    with mock.patch.object(rtlil.ModuleEmitter, "emit_memory", _emit_memory):
        yield


def _convert(component: wiring.Component, name: str) -> str:
    with blank_memories():
        return verilog.convert(component, name=name, emit_src=False, strip_internal_attrs=True)


_amaranth_emit_memory = rtlil.ModuleEmitter.emit_memory


def _emit_memory(emitter: rtlil.ModuleEmitter, cell_index: int, cell: Any) -> None:
    """Leaves out contents of nothing but zeros: megabits of them take minutes."""
    if any(cell.init):
        _amaranth_emit_memory(emitter, cell_index, cell)
