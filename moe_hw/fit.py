"""Does an accelerator fit a board? Budgets from the sizes alone, before any synthesis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from boards import Board
from moe_hw.arch import ACC_BITS, EXP_BITS, ROWS, Arch, ArchError
from moe_hw.errors import UsageError

DSPS_PER_COLUMN = ROWS // 2
"""Two neighbouring columns share a multiplier, so a column costs half a multiplier for each row."""

DSPS_FIXED = 23
"""Multipliers outside the array: post, router, combine, addresses. From Yosys' ``synth_ecp5``, default sizes."""

LUTS_PER_MAC = 41
LUTS_FIXED = 29400
"""The array's rows and everything else, from the same synthesis; for other sizes and families an estimate."""

COLUMNS = (4, 8, 16, 32, 64, 128)
"""Columns of a sub-array that :func:`size_array` tries: those of ``Arch``."""

_SIZED_BY = {
    "expert_buffer_bits": "expert_beats",
    "vector_buffer_bits": "vector_blocks",
    "accumulator_bits": "slots",
    "logit_bits": "logit_words",
    "combine_bits": "combine_elements",
    "queue_bits": "max_tokens",
}
"""The size that makes each buffer smaller."""

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
    return _estimate(arch, arch.columns)


def _estimate(arch: Arch, columns: int) -> dict[str, int]:
    """As :func:`estimate`, for any number of columns beside the other sizes of ``arch``."""
    buffers = {
        "expert_buffer_bits": arch.expert_beats * ROWS * columns,
        "vector_buffer_bits": arch.vector_blocks * (arch.channels * ROWS * 8 + EXP_BITS),
        "accumulator_bits": arch.slots * columns * ACC_BITS,
        "logit_bits": arch.logit_words * columns * ACC_BITS,
        "combine_bits": arch.combine_elements * ACC_BITS,
        "queue_bits": arch.queue_entries * QUEUE_ENTRY_BITS,
    }
    array_dsps = DSPS_PER_COLUMN * columns
    return {
        "array_dsps": array_dsps,
        "dsps": array_dsps + DSPS_FIXED,
        "luts": LUTS_PER_MAC * ROWS * columns + LUTS_FIXED,
        **buffers,
        "memory_bits": sum(buffers.values()),
    }


@dataclass(frozen=True)
class Shortage:
    """A resource of an FPGA of which an accelerator needs more than there is."""

    resource: str
    unit: str
    need: int
    budget: int


def _shortages(board: Board, needs: Mapping[str, int]) -> Iterator[Shortage]:
    fpga = board.fpga
    for shortage in (
        Shortage("multipliers", "", needs["dsps"], fpga.dsps),
        Shortage("LUTs", "", needs["luts"], fpga.luts),
        Shortage("block RAM", "kbit of ", -(-needs["memory_bits"] // 1024), fpga.bram_kbits),
    ):
        if shortage.need > shortage.budget:
            yield shortage


def require(board: Board, arch: Arch, needs: Mapping[str, int]) -> None:
    """Hold what an accelerator needs, estimated or counted, against what the FPGA of ``board`` has.

    Parameters:
        board: the board.
        arch: sizes of the accelerator.
        needs: ``dsps``, ``luts`` and ``memory_bits``.

    Raises:
        UsageError: there is less of one; it says by how much and which size to lower.
    """
    if short := next(_shortages(board, needs), None):
        largest = max(_SIZED_BY, key=estimate(board, arch).__getitem__)
        size = _SIZED_BY[largest] if short.resource == "block RAM" else "columns"
        raise UsageError(
            f"{board.name}: expected at most {short.budget} {short.unit}{short.resource}, the accelerator needs "
            f"{short.need}, {short.need - short.budget} more than {board.fpga.device} has; lower accelerator.{size}"
        )


@dataclass(frozen=True)
class Sizing:
    """What an FPGA and its memory say about the number of columns.

    Attributes:
        columns: the most that fit, of all sub-arrays together, a power of two; 0 if not even the least does.
        limit: what twice as many would exceed, the resources of the FPGA or the numbers that are tried.
        saturating: the fewest that take all that the memory's pins give, a power of two.
    """

    columns: int
    limit: str
    saturating: int


def size_array(board: Board) -> Sizing:
    """Size the array from the FPGA's budget, with the board's other sizes, and from the memory's bandwidth.

    With int4 weights and one token, a tile of ``32 * columns`` weights is 4.25 beats, scales included, and the array
    takes a beat of ``32 * columns`` bits a cycle: it saturates the memory if a beat is what the pins give in a cycle.
    """
    arch = arch_of(board)
    beats = board.memory.bytes_per_second * 8 / (board.clock_mhz * 1e6 * ROWS)
    saturating = max(COLUMNS[0], 1 << (math.ceil(beats) - 1).bit_length())
    fitting = 0
    for columns in (arch.channels * columns for columns in COLUMNS):
        if short := [shortage.resource for shortage in _shortages(board, _estimate(arch, columns))]:
            return Sizing(fitting, " and ".join(short), saturating)
        fitting = columns
    return Sizing(fitting, "the generator's range", saturating)


def check(board: Board, arch: Arch) -> None:
    """Hold ``arch`` against the resources of ``board``.

    Raises:
        UsageError: it needs more multipliers, LUTs or memory than the FPGA has, or does not match the board's memory.
    """
    if arch.channels not in (1, board.memory.channels):
        raise UsageError(
            f"{board.name}: accelerator.channels: expected 1 or the memory's {board.memory.channels}, "
            f"got {arch.channels}"
        )
    require(board, arch, estimate(board, arch))
    reach = (board.memory.size_bytes - 1).bit_length()
    if arch.addr_bits < reach:
        raise UsageError(
            f"{board.name}: accelerator.addr_bits: expected at least {reach} for {board.memory.size_mib} MiB, "
            f"got {arch.addr_bits}"
        )
