"""The systolic array: 32 identical rows, commands and partial sums moving down one row a cycle."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from moe_hw.arch import ROWS, Arch
from rtl_gen.emit import OF_ITS_OWN, instance
from rtl_gen.row import SUM_BITS, Row, command_layout

NEIGHBOURS = 8
"""Rows that share the registers of their banks' addresses."""

LATENCY = ROWS + 3
"""Cycles from a command to its sums."""


class Array(wiring.Component):
    """A weight-stationary systolic array of 32 rows x ``columns``, with the row banks of both buffers.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    command : In(command_layout(arch))
        Command of row 0.
    sums : Out(columns x 18 bits)
        Dot products of the command's block, ``LATENCY`` cycles after it. Throughput: a block a cycle.
    plane_write : In(1), plane_address : In, beat : In(32 * columns)
        Writes a plane beat to the row banks of the expert buffer; bit ``columns * r + c`` is row r's, column c's.
    x_write : In(1), x_address : In, x : In(32 x 8 bits)
        Writes a block to the vector banks, an element to each row.

    Attributes
    ----------
    repeated : dict
        Modules to emit once, by Verilog name.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        self.repeated = {"moe_row": Row(arch)}
        super().__init__(
            {
                "command": In(command_layout(arch)),
                "sums": Out(arch.columns * SUM_BITS),
                "plane_write": In(1),
                "plane_address": In(bits_for(arch.expert_beats - 1)),
                "beat": In(arch.beat_bits),
                "x_write": In(1),
                "x_address": In(bits_for(arch.vector_blocks - 1)),
                "x": In(data.ArrayLayout(8, ROWS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        row = self.repeated["moe_row"]

        # Two registers between the writers and 32 banks; of the second there is a copy for each neighbourhood.
        plane_write = Signal()
        plane_address = Signal.like(self.plane_address)
        beat = Signal.like(self.beat)
        x_write = Signal.like(self.x_write)
        x_address = Signal.like(self.x_address)
        x = Signal.like(self.x)
        m.d.sync += [
            plane_write.eq(self.plane_write),
            plane_address.eq(self.plane_address),
            beat.eq(self.beat),
            x_write.eq(self.x_write),
            x_address.eq(self.x_address),
            x.eq(self.x),
        ]

        near_beat, near_x = Signal.like(beat), Signal.like(x)
        m.d.sync += [near_beat.eq(beat), near_x.eq(x)]
        common = {
            "plane_write": plane_write, "plane_address": plane_address, "x_write": x_write, "x_address": x_address
        }  # fmt: skip
        near = {}

        command, sums = self.command, 0
        for index in range(ROWS):
            if index % NEIGHBOURS == 0:
                for name, value in common.items():
                    near[name] = Signal.like(value, name=f"{name}_{index}", attrs=OF_ITS_OWN)
                    m.d.sync += near[name].eq(value)
            ports = row.signature.create(path=(f"row_{index}",))
            m.d.comb += [
                ports.command.eq(command),
                ports.sums.eq(sums),
                ports.plane_write.eq(near["plane_write"]),
                ports.plane_address.eq(near["plane_address"]),
                ports.plane.eq(near_beat.word_select(index, arch.columns)),
                ports.x_write.eq(near["x_write"]),
                ports.x_address.eq(near["x_address"]),
                ports.x.eq(near_x[index]),
            ]
            m.submodules[f"row_{index}"] = instance("moe_row", row.signature, ports)
            command, sums = ports.next_command, ports.next_sums
        m.d.comb += self.sums.eq(sums)
        return m
