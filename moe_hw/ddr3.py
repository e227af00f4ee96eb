"""The registers of a board's DDR3 memory behind the host bridge, and what its chip's mode registers have to hold."""

from __future__ import annotations

from boards import Memory

REGISTERS_BASE = 0x800
"""Byte address, among the bridge's CSRs, of the memory's registers: the accelerator's are below."""

REGISTERS_ADDR_BITS = 9
"""Of a byte address from there on."""

PHASES = 2
"""Clocks of the chip in one of the controller's; each has commands and data of its own."""

INJECTOR = (
    "command", "command_issue", "address", "baddress", "wrdata_high", "wrdata_low", "rddata_high", "rddata_low"
)  # fmt: skip
"""Registers with which the host issues commands in one phase."""

CONTROLLER = (
    "dfii_control", *(f"dfii_pi{phase}_{name}" for phase in range(PHASES) for name in INJECTOR), "init_done"
)  # fmt: skip
PHY = (
    "dly_sel", "rdly_dq_rst", "rdly_dq_inc", "rdly_dq_bitslip_rst", "rdly_dq_bitslip", "burstdet_clr", "burstdet_seen"
)  # fmt: skip
"""Registers of LiteDRAM's controller and of its PHY, under its names, in the order of their addresses."""

BANK_BYTES = 1 << REGISTERS_ADDR_BITS - 1
"""Of the addresses of each of the two."""

REGISTERS = {
    name: REGISTERS_BASE + bank * BANK_BYTES + 4 * index
    for bank, names in enumerate((CONTROLLER, PHY))
    for index, name in enumerate(names)
}
"""Byte address by name."""

CL, CWL = 6, 5
"""Clocks from a read or write to its data, of every DDR3 chip up to 800 MT/s."""

BITSLIPS, DELAYS = 4, 8
"""Settings of a byte lane of the PHY: by how many transfers its reads are shifted, and when they are strobed."""

RECOVERY_CODES = {5: 1, 6: 2, 7: 3, 8: 4, 10: 5, 12: 6, 14: 7, 16: 0}
"""Mode register 0: its code of the clocks from a write to an automatic precharge."""

DLL_RESET = 1 << 8
RON_34_OHM = 1 << 1
RTT_NOM_60_OHM = 1 << 2
RTT_WR_60_OHM = 1 << 9


def mode_registers(memory: Memory) -> tuple[tuple[int, int], ...]:
    """Number and value of each mode register, in the order of JESD79-3: bursts of eight, sequential."""
    recovery = next(clocks for clocks in sorted(RECOVERY_CODES) if clocks >= memory.clocks(memory.timing.tWR))
    return (
        (2, CWL - 5 << 3 | RTT_WR_60_OHM),
        (3, 0),
        (1, RON_34_OHM | RTT_NOM_60_OHM),
        (0, CL - 4 << 4 | DLL_RESET | RECOVERY_CODES[recovery] << 9),
    )
