"""Brings a board's DDR3 up: initialisation, and read levelling of LiteDRAM's PHY for the ECP5.

The order of the initialisation is that of JESD79-3. Levelling is what LiteX's BIOS does on a processor: for each byte
lane it tries every bit slip and delay with patterns that are written and read back, and takes the middle of the delays
that work.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from boards import Memory
from moe_hw.ddr3 import BITSLIPS, CL, CWL, DELAYS, PHASES, mode_registers
from moe_hw.errors import DeviceError

# The bits of the injector's registers.
SEL, CKE, ODT, RESET_N = 1, 2, 4, 8
CS, WE, CAS, RAS, WRITE_DATA, READ_DATA = 1, 2, 4, 8, 16, 32

ALL_BANKS = LONG_CALIBRATION = 1 << 10
"""The address bit that says so."""

RESET_NS, CKE_NS = 200_000, 500_000
"""In reset, and from there to clock enable."""

LOCK_CLOCKS = 512
"""Of the chip, from a calibration or a reset of its DLL to the next command."""

PATTERNS = 3
"""Of a burst each, that every setting has to bring back."""


class Registers(Protocol):
    """The registers of ``moe_hw.ddr3`` of a device."""

    def write(self, values: Iterable[tuple[str, int]]) -> None:
        """Write registers by name, in order, each once."""

    def read(self, names: Sequence[str]) -> list[int]:
        """The values of registers, read in order."""

    def pause(self, nanoseconds: float) -> None:
        """Let at least so much of the device's time pass."""


@dataclass(frozen=True)
class Level:
    """What a byte lane reads with: bit slip, delay, and how many delays work with that bit slip."""

    bitslip: int
    delay: int
    working: int


def bring_up(
    registers: Registers, memory: Memory, name: str, progress: Callable[[str], None] | None = None
) -> list[Level]:
    """Initialise the memory, level its byte lanes and hand it over to the controller.

    Parameters:
        registers: of the device.
        memory: of the board.
        name: what errors call the device.
        progress: told what takes long.

    Returns:
        The level of each byte lane.

    Raises:
        DeviceError: a byte lane reads nothing right, whatever its settings.
    """
    if progress is not None:
        progress("initialising the DDR3 memory")
    injector = _Injector(registers, memory)
    injector.initialise()
    levels = _levels(injector, name)
    registers.write([("dfii_control", SEL), ("init_done", 1)])
    return levels


def _levels(injector: _Injector, name: str) -> list[Level]:
    """Find and set the level of each byte lane."""
    every = range(injector.lanes)
    right: dict[tuple[int, int], list[bool]] = {}
    injector.step("dq_bitslip_rst", every)
    for bitslip in range(BITSLIPS):
        injector.step("dq_rst", every)
        for delay in range(DELAYS):
            right[bitslip, delay] = injector.right_lanes()
            injector.step("dq_inc", every)
        injector.step("dq_bitslip", every)
    levels = []
    for lane in every:
        level = max((_middle(right, lane, bitslip) for bitslip in range(BITSLIPS)), key=lambda level: level.working)
        if level.working == 0:
            raise _unlevelled(name, lane)
        injector.step("dq_bitslip_rst", [lane])
        injector.step("dq_rst", [lane])
        for _ in range(level.bitslip):
            injector.step("dq_bitslip", [lane])
        for _ in range(level.delay):
            injector.step("dq_inc", [lane])
        levels.append(level)
    for lane, works in enumerate(injector.right_lanes()):
        if not works:
            raise _unlevelled(name, lane)
    return levels


def _middle(right: dict[tuple[int, int], list[bool]], lane: int, bitslip: int) -> Level:
    """The middle of the longest row of delays that work."""
    best = Level(bitslip, 0, 0)
    length = 0
    for delay in range(DELAYS):
        length = length + 1 if right[bitslip, delay][lane] else 0
        if length > best.working:
            best = Level(bitslip, delay - length // 2, length)
    return best


def _unlevelled(name: str, lane: int) -> DeviceError:
    return DeviceError(
        f"{name}: expected byte lane {lane} of the DDR3 memory to bring back what was written, got other bytes with "
        f"each of {BITSLIPS} bit slips and {DELAYS} delays; check the board's supply, and load its own bitstream"
    )


class _Injector:
    """Issues commands to the chip, one at a time. The bridge is so slow that no distance between two is too short."""

    def __init__(self, registers: Registers, memory: Memory):
        self.registers = registers
        self.memory = memory
        self.lanes = memory.data_bits // 8
        # A command goes out in that phase whose data begin in the first one.
        self._read_phase, self._write_phase = -CL % PHASES, -CWL % PHASES
        self._patterns = random.Random(0)

    def initialise(self) -> None:
        """The sequence of JESD79-3, from the reset to the long calibration."""
        registers, memory = self.registers, self.memory
        registers.write([("dfii_control", 0)])
        registers.pause(RESET_NS)
        registers.write([("dfii_control", RESET_N | ODT)])
        registers.pause(CKE_NS)
        registers.write([("dfii_control", RESET_N | ODT | CKE)])
        registers.pause(memory.timing.tRFC + 10)
        # A board without a reset line may have rows open, of the design that was loaded before.
        self._command(0, RAS | WE, address=ALL_BANKS)
        for bank, value in mode_registers(memory):
            self._command(0, RAS | CAS | WE, bank, value)
        registers.pause(LOCK_CLOCKS * memory.clock_ns)
        self._command(0, WE, address=LONG_CALIBRATION)
        registers.pause(LOCK_CLOCKS * memory.clock_ns)

    def step(self, setting: str, lanes: Iterable[int]) -> None:
        """``dq_rst``, ``dq_inc``, ``dq_bitslip_rst`` or ``dq_bitslip`` of some byte lanes."""
        every = (1 << self.lanes) - 1
        self.registers.write(
            [
                ("dly_sel", sum(1 << lane for lane in lanes)),
                (f"rdly_{setting}", 1),
                ("dly_sel", 0),
                # Selected lanes stand still: all start again together, so that they keep in step.
                ("dly_sel", every),
                ("dly_sel", 0),
            ]
        )

    def right_lanes(self) -> list[bool]:
        """Which byte lanes bring every pattern back and see the strobes of every burst."""
        right = [True] * self.lanes
        for _ in range(PATTERNS):
            sent = self._patterns.randbytes(8 * self.lanes)
            found, strobed = self._write_and_read(sent)
            for lane in range(self.lanes):
                right[lane] &= sent[lane :: self.lanes] == found[lane :: self.lanes] and bool(strobed >> lane & 1)
        return right

    def _write_and_read(self, burst: bytes) -> tuple[bytes, int]:
        """What a burst brings back from row 0, and the lanes that saw its strobes."""
        words = [int.from_bytes(burst[at : at + 4], "little") for at in range(0, len(burst), 4)]
        places = [f"dfii_pi{phase}_{{}}data_{half}" for phase in range(PHASES) for half in ("low", "high")]
        self.registers.write((place.format("wr"), word) for place, word in zip(places, words, strict=True))
        self._command(0, RAS)
        self._command(self._write_phase, CAS | WE | WRITE_DATA)
        self.registers.write([("burstdet_clr", 1)])
        self._command(self._read_phase, CAS | READ_DATA)
        self._command(0, RAS | WE)
        *found, strobed = self.registers.read([*(place.format("rd") for place in places), "burstdet_seen"])
        return b"".join(word.to_bytes(4, "little") for word in found), strobed

    def _command(self, phase: int, code: int, bank: int = 0, address: int = 0) -> None:
        injector = f"dfii_pi{phase}_"
        self.registers.write(
            [
                (f"{injector}address", address),
                (f"{injector}baddress", bank),
                (f"{injector}command", CS | code),
                (f"{injector}command_issue", 1),
            ]
        )
