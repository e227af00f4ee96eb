"""Makes what a block RAM does not promise visible: a word that is read in the cycle in which it is written is unknown.

Amaranth's memories give the old word then. No block may rely on it: synthesis is told so, see ``rtl_gen.synthesis``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from amaranth.back import rtlil
from amaranth.hdl import Const

_emit_read_port = rtlil.ModuleEmitter.emit_read_port


@contextmanager
def unknown_collisions() -> Iterator[None]:
    """Verilog that is emitted meanwhile has ``x`` in those words; the benches make ones of it."""
    with mock.patch.object(rtlil.ModuleEmitter, "emit_read_port", _emit_colliding):
        yield


def _emit_colliding(emitter: rtlil.ModuleEmitter, cell_index: int, cell: Any) -> None:
    """Lets every write port of the same clock that the port is not transparent for collide with it."""
    writes = emitter.memories[cell.memory].write_port_ids
    collides = 0
    for index, number in writes.items():
        if getattr(cell, "clk", None) == emitter.netlist.cells[index].clk and index not in cell.transparent_for:
            collides |= 1 << number
    emit = emitter.builder.cell

    def emit_cell(kind: str, *, parameters: dict[str, Any], **rest: Any) -> Any:
        return emit(kind, parameters={**parameters, "COLLISION_X_MASK": Const(collides, len(writes))}, **rest)

    with mock.patch.object(emitter.builder, "cell", emit_cell):
        _emit_read_port(emitter, cell_index, cell)
