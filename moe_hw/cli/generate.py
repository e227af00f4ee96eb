"""``moe-hw generate``: the Verilog of a board's accelerator, with its manifest, register map and resources."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_hw.cli.console import Progress, add_format, table

if TYPE_CHECKING:
    from boards import Board
    from moe_hw.arch import Arch


def add_parser(commands: Any) -> None:
    command = commands.add_parser(
        "generate",
        help="write the Verilog of an accelerator",
        description="Write a board's accelerator into a directory: moe_hw.v, manifest.json, board.yaml, "
        "registers.md, registers.json and resources.json. The same inputs give the same bytes.",
    )
    command.add_argument("--board", default="ulx3s-85f", help="a board's name or a YAML file (default: %(default)s)")
    command.add_argument("--model", type=Path, metavar="DIR", help="check that the layers of this checkpoint fit")
    add_format(command)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="directory to write")
    command.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from boards import load_board
    from moe_hw import fit

    board = load_board(args.board)
    arch = fit.arch_of(board)
    with Progress() as progress:
        layers = generate(args, board, arch, args.output, progress)
    resources = fit.estimate(board, arch)
    print(table(("resource (estimate)", "used", "board"), _resource_rows(resources, _budget(board))))
    sizing = fit.size_array(board)
    print(
        f"array: {arch.columns} columns; {sizing.columns} would fit, limited by {sizing.limit}; "
        f"{sizing.saturating} would saturate the memory"
    )
    print(f"{args.output}: accelerator for {board.name}, configuration {arch.hash:#018x}")
    for layer in layers:
        print(f"fits: {layer['count']} MoE layers of {args.model}, {layer['tokens']} tokens at a time")
    return 0


def generate(
    args: argparse.Namespace, board: Board, arch: Arch, output: Path, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Write the directory ``output``; the layers of the checkpoint ``args.model``, if one is given, as it lists them.

    Raises:
        UsageError: the accelerator does not fit the board, or ``output`` is something else.
        ModelError: not a MoE checkpoint.
        DeviceError: its layers do not fit the accelerator.
        SetupError: the file system refuses.
    """
    from moe_hw import __version__, fit, regmap
    from moe_hw.generated import check_writable, write_generated

    fit.check(board, arch)
    check_writable(output)
    layers = checked_layers(args, arch, board.memory.size_bytes) if args.model else []
    progress("importing the generator")
    from rtl_gen.accelerator import Accelerator
    from rtl_gen.emit import to_verilog

    progress("generating Verilog")
    verilog = to_verilog(Accelerator(arch), "moe_hw")
    extra = {
        "registers.md": regmap.as_markdown(),
        "registers.json": _json(regmap.as_dict()),
        "resources.json": _json({"estimate": fit.estimate(board, arch), "budget": _budget(board)}),
    }
    write_generated(output, board, arch, verilog, extra, {"version": __version__, "layers": layers})
    return layers


def checked_layers(args: argparse.Namespace, arch: Any, memory_bytes: int) -> list[dict[str, Any]]:
    """The different layers of the checkpoint's configuration, as the manifest lists them.

    Raises:
        ModelError: not a MoE checkpoint.
        DeviceError: the layers do not fit.
    """
    from moe_hw.cli.checkpoint import read_config
    from moe_hw.cli.plan import formats_of
    from moe_hw.formats import layer_format
    from moe_hw.limits import Footprint, check_model
    from moe_hw.sites import layer_specs

    specs = layer_specs(read_config(args.model))
    formats = [layer_format(name) for name in formats_of(args.format, specs)]
    check_model(specs, arch, formats, memory_bytes, str(args.model))
    layers = []
    for (spec, form), count in Counter(zip(specs, formats, strict=True)).items():
        footprint = Footprint.of(spec, arch, form)
        layers.append(
            {
                "count": count,
                "spec": spec.as_dict(),
                "format": form.name,
                "tokens": footprint.max_tokens(),
                "bytes": footprint.image_bytes,
            }
        )
    return layers


def _budget(board: Any) -> dict[str, int]:
    return {"dsps": board.fpga.dsps, "luts": board.fpga.luts, "memory_bits": board.fpga.bram_kbits * 1024}


def _resource_rows(resources: dict[str, int], budget: dict[str, int]) -> list[tuple[str, str, str]]:
    return [(name, f"{used:,}", f"{budget[name]:,}" if name in budget else "") for name, used in resources.items()]


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
