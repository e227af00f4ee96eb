"""``moe-hw boards``: the boards that come with the project."""

from __future__ import annotations

import argparse
from typing import Any

from moe_hw.cli.console import table


def add_parser(commands: Any) -> None:
    command = commands.add_parser("boards", help="list the boards", description="List the boards known by name.")
    command.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from boards import DEFAULT_BOARD, list_boards, load_board

    rows = []
    for board in map(load_board, list_boards()):
        memory = board.memory
        rows.append(
            (
                board.name + (" (default)" if board.name == DEFAULT_BOARD else ""),
                board.description,
                board.accelerator["columns"],
                f"{board.clock_mhz:g}",
                f"{memory.size_mib:,}",
                f"{memory.bytes_per_second / 1e9:.2f}",
            )
        )
    print(table(("board", "description", "columns", "MHz", "memory MiB", "GB/s"), rows, left=2))
    return 0
