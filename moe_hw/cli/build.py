"""``moe-hw build``: from a model or a board to a bitstream whose timing is met."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_hw.cli import build_report
from moe_hw.cli.console import Progress, add_format, positive
from moe_hw.errors import TimingError, UsageError

if TYPE_CHECKING:
    from boards import Board
    from moe_hw.generated import Generated
    from rtl_gen.toolchain import Made

SEEDS = 3
"""Places and routes of a build: one alone may be off by a third."""


def add_parser(commands: Any) -> None:
    command = commands.add_parser(
        "build",
        help="make the bitstream of a board",
        description="Generate, synthesise, place and route over several seeds, and pack. Each step is kept by its "
        "content and its tool's version: a build that was ended goes on where it stopped. The bitstream, the logs and "
        "build.json come into OUT/build.",
    )
    command.add_argument(
        "output", nargs="?", type=Path, metavar="OUT",
        help="directory of `moe-hw generate`; with --board it is written first (default: the board's name)",
    )  # fmt: skip
    command.add_argument("--board", help="a board's name or a YAML file: generate its accelerator into OUT")
    command.add_argument("--model", type=Path, metavar="DIR", help="check that the layers of this checkpoint fit")
    add_format(command)
    command.add_argument(
        "--seeds", type=positive, default=SEEDS, metavar="N",
        help="place and route with the seeds 1 to N and take the fastest (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--jobs", type=positive, default=os.cpu_count() or 1, metavar="N",
        help="seeds at a time (default: one for each core)",
    )  # fmt: skip
    command.set_defaults(execute=execute)


_SAID_CHARACTERS = 40
"""Of a tool's line that are shown: two of them find room in a terminal."""


class Steps:
    """Prints a line for each step that is done, and what those that run say. Called from several threads."""

    def __init__(self, progress: Progress, folder: Path):
        self._progress = progress
        self._folder = folder
        self._lock = threading.Lock()
        self._said: dict[str, str] = {}

    def watch(self, step: str, line: str) -> None:
        """A step runs, and this is the last line of its log."""
        with self._lock:
            self._said[step] = line.removeprefix("Info:").strip()[:_SAID_CHARACTERS]
            self._progress("; ".join(f"{name}: {said}" for name, said in sorted(self._said.items())))

    def done(self, step: str, made: Made | None, result: str) -> None:
        """A step is done: its time, its result, and its log among those of the build."""
        with self._lock:
            self._said.pop(step, None)
            self._progress("")
            if made is not None:
                shutil.copyfile(made.folder / "log", self._folder / f"{step.replace(' ', '-')}.log")
            self.line(step, made.seconds if made else None, result, made is not None and not made.fresh)

    def line(self, step: str, seconds: float | None, result: str, kept: bool = False) -> None:
        """Print the line of a step; ``kept``: it was done before."""
        duration = f"{seconds:.1f} s" if seconds is not None else "failed"
        print(f"{step:<11} {duration:>9}{' (kept)' if kept else '':<7}  {result}".rstrip(), flush=True)


def execute(args: argparse.Namespace) -> int:
    if args.output is None and args.board is None:
        raise UsageError("expected OUT, a directory of `moe-hw generate`, or --board; got neither")
    from boards import load_board

    board = load_board(args.board) if args.board else None
    output = args.output or Path(board.name if board else "")
    with Progress() as progress, _ended_by_signal():
        try:
            return _build(args, board, output, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"what is done is kept: run `moe-hw build {output}` to go on") from None


def _build(args: argparse.Namespace, board: Board | None, output: Path, progress: Progress) -> int:
    from moe_hw import built, fit
    from rtl_gen import bitstream
    from rtl_gen.top_levels import top_level

    start = time.monotonic()
    generated = _generated(args, board, output, progress)
    arch, top = generated.arch, top_level(generated.board.name)
    folder = built.fresh_folder(output)
    steps = Steps(progress, folder)
    progress("elaborating the top level")
    design = top.design(generated)
    progress("")
    steps.line("generate", time.monotonic() - start, str(output))

    netlist = bitstream.synthesise(design, steps.watch)
    used = netlist.resources
    counts = f"{used.luts:,} LUTs, {used.flip_flops:,} flip-flops, {used.dsps} multipliers"
    steps.done("synthesise", netlist.made, f"{counts}, {used.block_rams:g} block RAMs")
    memory_bits = round(used.block_rams * bitstream.BLOCK_RAM_BITS)
    fit.require(generated.board, arch, {"dsps": used.dsps, "luts": used.luts, "memory_bits": memory_bits})

    seeds = range(1, args.seeds + 1)
    routings = bitstream.place_and_route_all(design, netlist, seeds, args.jobs, steps.watch, steps.done)
    best = max(routings, key=lambda routing: routing.slack)
    packed = None
    if best.met:
        packed = bitstream.pack(best, steps.watch)
        steps.done("pack", packed, f"{(packed.folder / bitstream.BITSTREAM).stat().st_size:,} bytes")

    macs = build_report.peak(arch, design.clocks["sync"])
    notes = {"board": generated.board.name, "config_hash": f"{arch.hash:#018x}", "loader": top.loader}
    result = {"peak_macs_per_second": macs, **build_report.as_dict(best)}
    built.write_record(folder, packed.folder / bitstream.BITSTREAM if packed else None, notes | result)
    print(f"\n{build_report.tables(best, routings)}\n")
    print(f"peak: {macs / 1e9:.1f} GMAC/s at {design.clocks['sync']:g} MHz")
    if not best.met:
        raise TimingError(build_report.too_slow(best, output))
    print(f"{folder / built.BITSTREAM}: seed {best.seed}; `moe-hw program {output}` loads it")
    return 0


def _generated(args: argparse.Namespace, board: Board | None, output: Path, progress: Progress) -> Generated:
    """The accelerator to build, generated first if a board is given."""
    from moe_hw import fit
    from moe_hw.cli.generate import checked_layers, generate
    from moe_hw.generated import read_generated
    from rtl_gen.top_levels import top_level

    if board is not None:
        top_level(board.name)
        generate(args, board, fit.arch_of(board), output, progress)
    generated = read_generated(output)
    if board is None and args.model:
        checked_layers(args, generated.arch, generated.board.memory.size_bytes)
    return generated


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM and SIGHUP end a build as Ctrl-C does, with its tools: they would go on for an hour."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
