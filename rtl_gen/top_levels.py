"""The boards that a bitstream can be built for: each has a top level with its pins, clocks and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moe_hw.errors import UsageError
from moe_hw.generated import Generated
from rtl_gen.board_design import BoardDesign
from rtl_gen.ecpix5 import ecpix5
from rtl_gen.ulx3s import ulx3s


@dataclass(frozen=True)
class TopLevel:
    """How a board is built and loaded.

    Attributes:
        design: the contents of its FPGA for a generated accelerator.
        loader: what openFPGALoader calls the board.
    """

    design: Callable[[Generated], BoardDesign]
    loader: str


TOP_LEVELS = {"ecpix5-85f": TopLevel(ecpix5, "ecpix5"), "ulx3s-85f": TopLevel(ulx3s, "ulx3s")}
"""By the name of the board."""


def top_level(board: str) -> TopLevel:
    """The top level of a board.

    Raises:
        UsageError: it has none.
    """
    if board not in TOP_LEVELS:
        known = ", ".join(sorted(TOP_LEVELS))
        raise UsageError(
            f"board: expected one with a top level of its own ({known}), got {board}; "
            "`moe-hw generate` writes its accelerator for a top level of yours"
        )
    return TOP_LEVELS[board]
