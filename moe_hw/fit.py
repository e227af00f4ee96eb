"""Does an accelerator fit a board? Budgets from the sizes alone, before any synthesis."""

from __future__ import annotations

import dataclasses

from boards import Board
from moe_hw.arch import ACC_BITS, EXP_BITS, ROWS, Arch, ArchError
from moe_hw.errors import UsageError

DSPS_PER_COLUMN = ROWS // 2
"""Two neighbouring columns share a multiplier, so a column costs half a multiplier for each row."""

DSPS_FIXED = 24
"""Multipliers outside the array: post, router, combine, addresses. From Yosys' ``synth_ecp5``, default sizes."""

LUTS_PER_MAC = 32
LUTS_FIXED = 23000
"""The array's rows and everything else, from the same synthesis; for other sizes and families an estimate."""

QUEUE_ENTRY_BITS = 48
"""Token, weight and link of one place in the expert queues, rounded up."""


def arch_of(board: Board) -> Arch:
    """The accelerator of a board's ``accelerator`` section; sizes that are not given take their defaults.

    Raises:
        UsageError: a size is unknown or cannot be built.
    """
    names = [field.name for field in dataclasses.fields(Arch)]
    for name in board.accelerator:
        if name not in names:
            raise UsageError(f"{board.name}: accelerator.{name}: expected one of {', '.join(names)}, got this key")
    try:
        return Arch(**board.accelerator)
    except ArchError as error:
        raise UsageError(f"{board.name}: accelerator.{error}") from None


def estimate(board: Board, arch: Arch) -> dict[str, int]:
    """Resources that ``arch`` takes on ``board``.

    Returns:
        ``array_dsps``, exact; ``dsps`` and ``luts`` of everything, estimates; ``<buffer>_bits`` of each buffer and
        ``memory_bits``, their sum. Block RAMs are coarser than bits, so a netlist uses more of them.
    """
    buffers = {
        "expert_buffer_bits": arch.expert_beats * arch.beat_bits,
        "vector_buffer_bits": arch.vector_blocks * (ROWS * 8 + EXP_BITS),
        "accumulator_bits": arch.slots * arch.columns * ACC_BITS,
        "logit_bits": arch.logit_words * arch.columns * ACC_BITS,
        "combine_bits": arch.combine_elements * ACC_BITS,
        "queue_bits": arch.queue_entries * QUEUE_ENTRY_BITS,
    }
    array_dsps = DSPS_PER_COLUMN * arch.columns
    return {
        "array_dsps": array_dsps,
        "dsps": array_dsps + DSPS_FIXED,
        "luts": LUTS_PER_MAC * ROWS * arch.columns + LUTS_FIXED,
        **buffers,
        "memory_bits": sum(buffers.values()),
    }


def check(board: Board, arch: Arch) -> None:
    """Hold ``arch`` against the resources of ``board``.

    Raises:
        UsageError: it needs more multipliers, LUTs or memory than the FPGA has, or cannot address the board's memory.
    """
    needs = estimate(board, arch)
    memory_kbits = -(-needs["memory_bits"] // 1024)
    for what, need, budget, advice in (
        ("multipliers", needs["dsps"], board.fpga.dsps, "choose fewer columns"),
        ("LUTs", needs["luts"], board.fpga.luts, "choose fewer columns"),
        ("kbit of block RAM", memory_kbits, board.fpga.bram_kbits, "choose smaller buffers"),
    ):
        if need > budget:
            raise UsageError(f"{board.name}: expected at most {budget} {what}, the accelerator needs {need}; {advice}")
    reach = (board.memory.size_bytes - 1).bit_length()
    if arch.addr_bits < reach:
        raise UsageError(
            f"{board.name}: accelerator.addr_bits: expected at least {reach} for {board.memory.size_mib} MiB, "
            f"got {arch.addr_bits}"
        )
