"""``moe-hw pack``: quantise a checkpoint's MoE layers into a memory image."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_hw.cli.console import Progress, add_format, add_scales, positive
from moe_hw.errors import SetupError


def add_parser(commands: Any) -> None:
    command = commands.add_parser(
        "pack",
        help="quantise a model into a memory image",
        description="Quantise the MoE layers of a checkpoint and write them as an accelerator reads them. Each process "
        "has one layer in memory. A run that was interrupted goes on where it stopped.",
    )
    command.add_argument("--model", type=Path, required=True, metavar="DIR", help="checkpoint directory (safetensors)")
    command.add_argument("--board", default="ulx3s-85f", help="a board's name or a YAML file (default: %(default)s)")
    add_format(command)
    add_scales(command)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="IMAGE", help="directory to write")
    jobs = len(os.sched_getaffinity(0))
    command.add_argument("--jobs", type=positive, default=jobs, metavar="N", help="processes (default: the cores)")
    command.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from boards import load_board
    from moe_hw.cli.plan import formats_of
    from moe_hw.cli.stream import LayerStream
    from moe_hw.fit import arch_of
    from moe_hw.formats import layer_format
    from moe_hw.limits import check_model
    from moe_hw.stored import begin_image, finish_image

    board = load_board(args.board)
    arch = arch_of(board)
    with Progress() as progress:
        progress(f"reading {args.model}")
        stream = LayerStream(args.model)
        specs = [site.spec for site in stream.sites]
        names = formats_of(args.format, specs)
        formats = [layer_format(name) for name in names]
        check_model(specs, arch, formats, board.memory.size_bytes, str(args.model))
        source = json.dumps([stream.source, names, args.scales], default=str)
        work = _Work(args.model, args.output, names, args.scales, arch, source)
        there = begin_image(args.output, arch, source)
        todo = [number for number in range(len(stream.sites)) if number not in there]
        rounded = 0
        for done, count in enumerate(_packed(work, stream, todo, min(args.jobs, len(todo)), progress), 1):
            rounded += count
            progress.steps(len(there) + done, len(stream.sites), "layers are packed")
        finish_image(args.output, len(stream.sites), arch)
    size = sum(file.stat().st_size for file in args.output.iterdir())
    print(f"{args.output}: {len(stream.sites)} MoE layers in {args.format}, {size:,} bytes, for {args.board}")
    if there:
        print(f"{len(there)} of them were there from a run before")
    if rounded:
        print(f"{rounded:,} blocks of 32 weights are no integers times a step of theirs, and were rounded anew")
    return 0


@dataclass(frozen=True)
class _Work:
    """What is packed, how and where to; goes to the processes that do it.

    Attributes:
        formats: of each layer.
        source: of the image, see ``moe_hw.stored.begin_image``.
    """

    model: Path
    output: Path
    formats: list[str]
    scales: str
    arch: Any
    source: str

    def pack(self, stream: Any, number: int, progress: Callable[[str], None] | None = None) -> int:
        """Pack a layer; returns the blocks that could not keep their codes."""
        from moe_hw.quantised import QuantisedLayer
        from moe_hw.stored import write_layer

        name = stream.sites[number].name
        layer = QuantisedLayer(stream.layer(number), self.formats[number], name, self.scales)
        write_layer(self.output, number, name, layer, self.arch, self.source, progress)
        return sum(layer.off_grid.values())


def _packed(work: _Work, stream: Any, todo: list[int], jobs: int, progress: Callable[[str], None]) -> Iterator[int]:
    """Pack layers, in ``jobs`` processes if there are several; a result for each, as they are done."""
    if jobs <= 1:
        for number in todo:
            yield work.pack(stream, number, progress)
        return
    # Not forked: threads of torch would be missing in the child.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, _begin, (work,))
    try:
        waiting = {pool.submit(_pack, number) for number in todo}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise SetupError("a process that packed layers was killed, perhaps for its memory; lower --jobs") from error
    except BaseException:
        for process in pool._processes.values():  # a layer takes minutes, and what is whole of it has a record
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(work: _Work) -> None:
    """In a new process: open the checkpoint, and leave an interruption to the parent."""
    global _work, _stream
    import torch

    from moe_hw.cli.stream import LayerStream

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _work, _stream = work, LayerStream(work.model)


def _pack(number: int) -> int:
    return _work.pack(_stream, number)


_work: _Work
_stream: Any
