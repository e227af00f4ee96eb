"""Between LiteDRAM's controller and its PHY: DFI, and the bus of the PHY's registers."""

from __future__ import annotations

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from boards import Memory
from moe_hw.ddr3 import PHASES, REGISTERS_ADDR_BITS
from rtl_gen.sdram_pins import bank_bits, row_bits


class RegisterBus(wiring.Signature):
    """LiteX's bus for registers, seen from the master: a word that is read comes in the next clock."""

    def __init__(self) -> None:
        super().__init__(
            {"adr": Out(REGISTERS_ADDR_BITS - 2), "re": Out(1), "we": Out(1), "dat_w": Out(32), "dat_r": In(32)}
        )


class Dfi(wiring.Signature):
    """Commands and data of each phase, under the names of the DDR PHY Interface; seen from the controller.

    A phase is a clock of the chip. The eight transfers of a burst lie in all phases together, the first one lowest.
    """

    def __init__(self, memory: Memory):
        bits = memory.burst_length * memory.data_bits // PHASES
        phase = {
            "address": Out(row_bits(memory)), "bank": Out(bank_bits(memory)),
            "cs_n": Out(1), "ras_n": Out(1), "cas_n": Out(1), "we_n": Out(1),
            "cke": Out(1), "odt": Out(1), "reset_n": Out(1),
            "wrdata": Out(bits), "wrdata_en": Out(1), "wrdata_mask": Out(bits // 8),
            "rddata_en": Out(1), "rddata": In(bits), "rddata_valid": In(1),
        }  # fmt: skip
        super().__init__(
            {f"p{number}_{name}": member for number in range(PHASES) for name, member in phase.items()}
        )


class PhyInterface(wiring.Signature):
    """All that a PHY needs of its controller."""

    def __init__(self, memory: Memory):
        super().__init__({"dfi": Out(Dfi(memory)), "csr": Out(RegisterBus())})
