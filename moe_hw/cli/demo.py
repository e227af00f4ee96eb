"""``moe-hw demo``: the model that comes with the project, on the simulated default board, checked."""

from __future__ import annotations

import argparse
from typing import Any

from moe_hw.cli import run
from moe_hw.cli.console import positive


def add_parser(commands: Any) -> None:
    command = commands.add_parser(
        "demo",
        help="run the built-in model on the simulated board",
        description="Generate text with the built-in model on a simulated ULX3S-85F, every layer call checked bit for "
        "bit against the golden model. It needs no download; the first run builds the simulator.",
    )
    command.add_argument(
        "--max-new-tokens", type=positive, default=48, metavar="N", help="tokens to generate (default: %(default)s)"
    )
    command.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from moe_hw.demo import HELD_OUT, MODEL_DIR, PROMPT

    return run.execute(
        argparse.Namespace(
            model=MODEL_DIR,
            device="sim:ulx3s-85f",
            prompt=PROMPT,
            max_new_tokens=args.max_new_tokens,
            format="int4",
            scales="largest",
            check=True,
            text_file=HELD_OUT,
            seed=None,
        )
    )
