"""A DDR3 chip behind DFI for benches, initialised already, and the two clocks around its controller."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
from amaranth.lib import data
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, Timer
from numpy.typing import NDArray

from boards import Memory
from moe_hw.ddr3 import PHASES, mode_registers
from rtl_gen.dfi import Dfi
from rtl_gen.litedram_core import latencies
from sim.ddr3_chip import Ddr3Chip, parameters

CONTROLLER_PS = 11_112
"""Period of the controller's clock: 90 MHz, of which half is whole picoseconds."""

COMMAND = ("cke", "cs_n", "ras_n", "cas_n", "we_n", "bank", "address")
DATA = ("wrdata_en", "rddata_en", "wrdata", "wrdata_mask")


def dfi_layout(memory: Memory) -> data.StructLayout:
    """What the controller drives, as one vector, which a bench reads at once."""
    members = Dfi(memory).members
    names = [f"p{phase}_{name}" for phase in range(PHASES) for name in (*COMMAND, *DATA)]
    return data.StructLayout({name: members[name].shape for name in names})


class DfiMemory:
    """PHY and chip at ``dut.dfi``, ``dut.rddata`` and ``dut.rddata_valid``.

    Parameters:
        memory: of the board.

    Attributes:
        bytes: what the chip holds, in the order of the addresses.
    """

    def __init__(self, memory: Memory):
        self._memory = memory
        self._fields = {name: (field.offset, (1 << field.width) - 1) for name, field in dfi_layout(memory)}
        self._read_latency, self._write_latency = latencies(memory)
        self.bytes: NDArray[np.uint8] = np.zeros(memory.size_bytes, np.uint8)
        self.chip = Ddr3Chip(parameters(memory))
        self._initialise()

    def _initialise(self) -> None:
        """What the host does through the registers, at the chip alone."""
        times = parameters(self._memory)

        def wait(clocks: int, *command: int, cke: int = 1) -> None:
            for _ in range(clocks):
                self.chip.clock(cke, 1, 1, 1, 1, 0, 0)
            if command:
                self.chip.clock(1, 0, *command)

        wait(times.power_up, cke=0)
        wait(times.tXPR)
        for number, value in mode_registers(self._memory):
            wait(times.tMRD, 0, 0, 0, number, value)
        wait(times.tMOD, 1, 1, 0, 0, 1 << 10)
        wait(times.tZQinit)

    async def serve(self, dut: Any) -> None:
        """Answer the controller, forever, once it has clock enable on.

        Raises:
            AssertionError: it breaks a rule of the chip.
        """
        now = 0
        reads: deque[tuple[int, int]] = deque()
        writes: deque[tuple[int, int]] = deque()
        while True:
            # In the middle of a cycle: what the controller sends is there, and what it takes at the next edge is not.
            await FallingEdge(dut.dram_clk)
            now += 1
            bits = int(dut.dfi.value)
            sent = {name: bits >> offset & mask for name, (offset, mask) in self._fields.items()}
            if not sent["p0_cke"]:
                continue
            for phase in range(PHASES):
                burst = self.chip.clock(*(sent[f"p{phase}_{name}"] for name in COMMAND))
                kind = None if burst is None else burst.write
                assert sent[f"p{phase}_wrdata_en"] == (kind is True)
                assert sent[f"p{phase}_rddata_en"] == (kind is False)
                if burst is not None:
                    queue, latency = (writes, self._write_latency) if burst.write else (reads, self._read_latency)
                    queue.append((now + latency, 2 * burst.place))
            if writes and writes[0][0] == now:
                self._write(writes.popleft()[1], sent)
            due = bool(reads) and reads[0][0] == now
            found = self._at(reads.popleft()[1]).tobytes() if due else random.randbytes(self._memory.burst_bytes)
            dut.rddata_valid.value, dut.rddata.value = int(due), int.from_bytes(found, "little")

    def _at(self, place: int) -> NDArray[np.uint8]:
        return self.bytes[place : place + self._memory.burst_bytes]

    def _write(self, place: int, sent: dict[str, int]) -> None:
        per_phase = self._memory.burst_bytes // PHASES
        for phase in range(PHASES):
            values = sent[f"p{phase}_wrdata"].to_bytes(per_phase, "little")
            for byte, value in enumerate(values):
                if not sent[f"p{phase}_wrdata_mask"] >> byte & 1:
                    self.bytes[place + phase * per_phase + byte] = value


async def start(dut: Any, fabric_ps: int) -> None:
    """Start both clocks, at a random phase, and reset both domains."""
    Clock(dut.clk, fabric_ps, unit="ps").start()
    await Timer(random.randrange(0, CONTROLLER_PS, 2) + 2, unit="ps")
    Clock(dut.dram_clk, CONTROLLER_PS, unit="ps").start()
    dut.rst.value = dut.dram_rst.value = 1
    await ClockCycles(dut.clk, 8)
    dut.rst.value = dut.dram_rst.value = 0
