"""The records between the blocks of the SDRAM controller."""

from __future__ import annotations

from amaranth.lib import data

from boards import Memory
from rtl_gen.sdram_pins import bank_bits, column_bits, row_bits
from rtl_gen.sdram_timing import transfers


def segment_layout(memory: Memory) -> data.StructLayout:
    """An access to ``length`` + 1 bus words of one row from ``column``, in bus words.

    ``masked`` is of a write that must change nothing.
    """
    return data.StructLayout(
        {
            "write": 1,
            "masked": 1,
            "column": column_bits(memory),
            "bank": bank_bits(memory),
            "row": row_bits(memory),
            "length": column_bits(memory),
        }
    )


def command_layout(memory: Memory) -> data.StructLayout:
    """A command to the chip; all zeros is none."""
    return data.StructLayout({"ras": 1, "cas": 1, "we": 1, "bank": bank_bits(memory), "address": row_bits(memory)})


def word_layout(memory: Memory) -> data.StructLayout:
    """A bus word to write and which of its bytes."""
    bits = transfers(memory) * memory.data_bits
    return data.StructLayout({"data": bits, "strobe": bits // 8})
