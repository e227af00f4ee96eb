"""Budgets of the boards."""

from __future__ import annotations

import dataclasses

import pytest

from boards import Board, list_boards, load_board
from moe_hw.arch import ROWS, Arch
from moe_hw.errors import UsageError
from moe_hw.fit import (
    DSPS_FIXED,
    DSPS_PER_COLUMN,
    LUTS_FIXED,
    LUTS_PER_MAC,
    Sizing,
    arch_of,
    check,
    estimate,
    size_array,
)

WIDE_DSPS = 16 * DSPS_PER_COLUMN + DSPS_FIXED
WIDE_LUTS = 16 * ROWS * LUTS_PER_MAC + LUTS_FIXED
"""Multipliers and LUTs that an accelerator of 16 columns needs."""


def with_accelerator(**sizes: int) -> Board:
    return dataclasses.replace(load_board("ulx3s-85f"), accelerator=sizes)


@pytest.mark.parametrize("name", list_boards())
def test_boards_fit_their_own_accelerator(name: str) -> None:
    board = load_board(name)
    check(board, arch_of(board))


def test_the_default_board_has_the_default_sizes() -> None:
    assert arch_of(load_board("ulx3s-85f")) == Arch() == arch_of(with_accelerator())


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(UsageError, match=r"^ulx3s-85f: accelerator.rows: expected one of columns, .*, got this key$"):
        arch_of(with_accelerator(rows=32))
    with pytest.raises(
        UsageError, match=r"^ulx3s-85f: accelerator.columns: expected a power of two from 4 to 128, got 9"
    ):
        arch_of(with_accelerator(columns=9))


@pytest.mark.parametrize("columns", [4, 8, 32, 128])
def test_estimate(columns: int) -> None:
    arch = Arch(columns=columns)
    needs = estimate(load_board("kv260"), arch)
    assert needs["array_dsps"] == 16 * columns <= needs["dsps"]
    assert needs["expert_buffer_bits"] == 2048 * 32 * columns
    assert needs["vector_buffer_bits"] == 2048 * (32 * 8 + 12)
    assert needs["accumulator_bits"] == 16 * columns * 48
    assert needs["memory_bits"] == sum(
        needs[name] for name in needs if name.endswith("_bits") and name != "memory_bits"
    )


@pytest.mark.parametrize(
    "sizes, message",
    [
        (
            {"columns": 16},
            f"expected at most 156 multipliers, the accelerator needs {WIDE_DSPS}, {WIDE_DSPS - 156} more than "
            "LFE5U-85F has; lower accelerator.columns",
        ),
        (
            {"expert_beats": 1 << 14},
            r"expected at most 3744 kbit of block RAM, the accelerator needs \d+, \d+ more than LFE5U-85F has; "
            "lower accelerator.expert_beats",
        ),
        ({"vector_blocks": 1 << 14}, "expected at most 3744 kbit of block RAM, .*; lower accelerator.vector_blocks"),
        ({"addr_bits": 24}, "accelerator.addr_bits: expected at least 25 for 32 MiB, got 24"),
    ],
)
def test_what_does_not_fit_is_named(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=f"^ulx3s-85f: {message}"):
        check(load_board("ulx3s-85f"), Arch(**sizes))


def test_luts_have_a_budget() -> None:
    board = load_board("ulx3s-85f")
    small = dataclasses.replace(board, fpga=dataclasses.replace(board.fpga, luts=20000))
    with pytest.raises(UsageError, match="expected at most 20000 LUTs, the accelerator needs 39896"):
        check(small, Arch())


@pytest.mark.parametrize(
    ("name", "sizing"),
    [
        ("ulx3s-85f", Sizing(8, "multipliers", 4)),
        ("ecpix5-85f", Sizing(8, "multipliers", 4)),
        ("kv260", Sizing(16, "block RAM", 16)),
        ("zcu102", Sizing(128, "the generator's range", 16)),
        ("u280", Sizing(512, "multipliers and LUTs", 512)),
        ("u55c", Sizing(512, "multipliers and LUTs", 512)),
    ],
)
def test_sizing_of_the_boards(name: str, sizing: Sizing) -> None:
    assert size_array(load_board(name)) == sizing


@pytest.mark.parametrize("name", list_boards())
def test_a_board_has_no_more_columns_than_fit(name: str) -> None:
    board = load_board(name)
    assert board.accelerator["columns"] <= size_array(board).columns


@pytest.mark.parametrize(
    ("budget", "columns", "limit"),
    [
        # Needs of 16 columns: 16 * 16 + DSPS_FIXED multipliers, WIDE_LUTS, 2733.75 kbit.
        ({"dsps": WIDE_DSPS}, 16, "multipliers"),
        ({"dsps": WIDE_DSPS - 1}, 8, "multipliers"),
        ({"luts": WIDE_LUTS}, 16, "LUTs"),
        ({"luts": WIDE_LUTS - 1}, 8, "LUTs"),
        ({"dsps": WIDE_DSPS - 1, "luts": WIDE_LUTS - 1}, 8, "multipliers and LUTs"),
        ({"bram_kbits": 2763}, 16, "block RAM"),
        ({"bram_kbits": 2762}, 8, "block RAM"),
        ({"luts": 1000}, 0, "LUTs"),
    ],
)
def test_sizing_names_what_limits_it(budget: dict[str, int], columns: int, limit: str) -> None:
    board = load_board("ulx3s-85f")
    plenty = {"dsps": 10**6, "luts": 10**6, "bram_kbits": 10**6} | budget
    sized = size_array(dataclasses.replace(board, fpga=dataclasses.replace(board.fpga, **plenty)))
    assert (sized.columns, sized.limit) == (columns, limit)


@pytest.mark.parametrize(
    ("clock_mhz", "columns"),
    [
        (300, 16),  # 512 bits a cycle at the pins, 16 columns of 32 bits
        (299, 32),
        (600, 8),
        (10**4, 4),  # the least
    ],
)
def test_columns_that_saturate_the_memory(clock_mhz: float, columns: int) -> None:
    board = dataclasses.replace(load_board("kv260"), clock_mhz=clock_mhz)
    assert size_array(board).saturating == columns
