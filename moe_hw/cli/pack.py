"""``moe-hw pack``: quantise a checkpoint's MoE layers into a memory image."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_hw.cli.console import Progress, add_format, add_scales


def add_parser(commands: Any) -> None:
    command = commands.add_parser(
        "pack",
        help="quantise a model into a memory image",
        description="Quantise the MoE layers of a checkpoint and write them as an accelerator reads them.",
    )
    command.add_argument("--model", type=Path, required=True, metavar="DIR", help="checkpoint directory (safetensors)")
    command.add_argument("--board", default="ulx3s-85f", help="a board's name or a YAML file (default: %(default)s)")
    add_format(command)
    add_scales(command)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="IMAGE", help="directory to write")
    command.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from boards import load_board
    from moe_hw.cli.checkpoint import load_model, read_config
    from moe_hw.fit import arch_of
    from moe_hw.formats import weight_format
    from moe_hw.image import write_image
    from moe_hw.limits import check_model
    from moe_hw.quantised import QuantisedLayer
    from moe_hw.sites import layer_specs, moe_sites

    form = weight_format(args.format)
    board = load_board(args.board)
    arch = arch_of(board)
    check_model(layer_specs(read_config(args.model)), arch, form, board.memory.size_bytes, str(args.model))
    with Progress() as progress:
        progress(f"loading {args.model}")
        sites = moe_sites(load_model(args.model))
        rounded = 0

        def layers() -> Iterator[tuple[str, QuantisedLayer]]:
            nonlocal rounded
            for site in sites:
                layer = QuantisedLayer(site.layer(), args.format, site.name, args.scales)
                yield site.name, layer
                rounded += sum(layer.off_grid.values())

        write_image(args.output, layers(), arch, progress)
    size = sum(file.stat().st_size for file in args.output.iterdir())
    print(f"{args.output}: {len(sites)} MoE layers in {args.format}, {size:,} bytes, for {args.board}")
    if rounded:
        print(f"{rounded:,} blocks of 32 weights are no integers times a step of theirs, and were rounded anew")
    return 0
