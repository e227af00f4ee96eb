"""What the commands print: tables, and progress for those who watch."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> str:
    """Rows under a header, in columns; the first ``left`` columns are aligned left, the others right."""
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        cells = zip(line, widths, strict=True)
        return "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width) for column, (cell, width) in enumerate(cells)
        ).rstrip()

    return "\n".join([aligned(lines[0]), "  ".join("-" * width for width in widths), *map(aligned, lines[1:])])


def add_format(command: argparse.ArgumentParser, of_experts: bool = True) -> None:
    """The argument of every command that quantises weights; ``of_experts``: experts may have formats of their own."""
    text = "weight format: int2 to int6, int8 or mxfp4 (default: %(default)s)"
    if of_experts:
        text += "; of experts that have another, int4,0-3=int8,9=int2; or a YAML file with that for each MoE layer"
    command.add_argument("--format", default="int4", metavar="F", help=text)


def add_scales(command: argparse.ArgumentParser) -> None:
    """The argument that says how scales are chosen."""
    text = (
        "scales of the weights: largest (of each block), mse (searched; slower, more exact), or grid (keep the codes "
        "of a GPTQ or AWQ checkpoint of 4 bits, with --format int5) (default: %(default)s)"
    )
    command.add_argument("--scales", default="largest", choices=("largest", "mse", "grid"), help=text)


class Progress:
    """A line on the terminal that replaces itself; silent when stderr is not a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self._shown:
            room = shutil.get_terminal_size().columns - 1  # a line that wraps would stay
            print(f"\r\x1b[K{text[:room]}", end="", file=sys.stderr, flush=True)

    def steps(self, done: int, total: int, name: str) -> None:
        """Show a step of a known number of them."""
        self(f"[{done}/{total}] {name}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self("")


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value
