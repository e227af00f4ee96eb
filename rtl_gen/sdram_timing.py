"""What an SDR SDRAM's timing means for the controller: waits in slots of two clocks, and its initialisation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from boards import Memory

SLOT = 2
"""Clocks of a slot: in the first a column command may go out, in the second a row command."""

BURST = 2
"""Transfers of a read or write command of SDR, so that one command moves one bus word in one slot."""

POWER_UP_NS = 200_000
"""From a stable clock to the first command: W9825G6KH; 100 µs for IS42S16160G."""

POWER_UP_REFRESHES = 8
"""Refreshes of an initialisation."""

MODE_CLOCKS = 2
"""From a mode register command to the next command, tMRD."""

MODE_BURST = {1: 0, 2: 1, 4: 2, 8: 3}
"""The mode register's code of a burst length, in its lowest bits; bit 3 is 0: sequential."""

MODE_LATENCY_SHIFT = 4
"""Where the mode register has the CAS latency."""

PRECHARGE_ALL = 1 << 10
"""The address bit that makes a precharge one of all banks."""


def transfers(memory: Memory) -> int:
    """Transfers of a read or write command, which moves one bus word: of DDR3 always a burst of eight."""
    return BURST if memory.type == "sdr" else memory.burst_length


def _slots(clocks: int) -> int:
    return -(-clocks // SLOT)


@dataclass(frozen=True)
class SdramTiming:
    """Waits of the controller.

    A slot has a column command in its first clock and a row command in its second one.

    Attributes:
        latency: clocks from a read command to its first transfer.
        precharge: slots from a precharge to an activate of the same bank.
        activate: slots from an activate to an activate of another bank.
        refresh: slots from a refresh to the next row command.
        mode: slots from a mode register command to the next row command.
        open: slots from an activate to the precharge of the bank; long enough for tRC, too.
        column: slots from an activate to the first column command of the bank.
        read_recovery, write_recovery: slots from a column command to the precharge of the bank.
        turnaround: slots from a read to a write.
        write_to_read: slots from a write to a read.
        interval: clocks between two refreshes.
        power_up: intervals before the first command.
    """

    latency: int
    precharge: int
    activate: int
    refresh: int
    mode: int
    open: int
    column: int
    read_recovery: int
    write_recovery: int
    turnaround: int
    write_to_read: int
    interval: int
    power_up: int

    @classmethod
    def of(cls, memory: Memory) -> SdramTiming:
        """The waits for ``memory``.

        Raises:
            ValueError: it is no SDR SDRAM of 16 bits.
        """
        if memory.type != "sdr" or memory.data_bits != 16 or memory.channels != 1:
            raise ValueError(
                f"memory: expected one channel of SDR SDRAM with 16 bits, got {memory.channels} of {memory.type} "
                f"with {memory.data_bits}"
            )
        times = memory.timing
        clocks = {field.name: memory.clocks(getattr(times, field.name)) for field in dataclasses.fields(times)}
        precharge = _slots(clocks["tRP"])
        # All 8192 rows are due again 8192 tREFI after their last refresh. A refresh can be late by the segment that is
        # under way, 512 clocks and a few: so a clock in each interval is more than enough to give away.
        interval = int(times.tREFI / memory.clock_ns) - 1
        return cls(
            latency=clocks["CL"],
            precharge=precharge,
            activate=_slots(clocks["tRRD_L"]),
            refresh=_slots(clocks["tRFC"]),
            mode=_slots(MODE_CLOCKS),
            open=max(_slots(clocks["tRAS"]), _slots(clocks["tRC"]) - precharge),
            column=_slots(clocks["tRCD"] - 1),
            read_recovery=_slots(BURST - 1),
            write_recovery=_slots(BURST - 1 + clocks["tWR"] - 1),
            turnaround=_slots(clocks["CL"] + BURST + clocks["tRTW"]),
            write_to_read=_slots(BURST - 1 + clocks["tWTR_L"]),
            interval=interval,
            power_up=-(-memory.clocks(POWER_UP_NS) // interval),
        )
