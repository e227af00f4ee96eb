"""``python -m rtl_gen.fmax``: what each block takes, and how fast it is alone on an ECP5.

Measured is register to register within the block: a :class:`rtl_gen.probe.Probe` puts registers around it. Paths
between blocks are as long as their two ends together, so the blocks register what they can.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from amaranth.lib import wiring

from boards import DEFAULT_BOARD, load_board
from moe_hw.arch import ACC_BITS, Arch
from moe_hw.bridge import BAUD
from moe_hw.cli import guarded
from moe_hw.cli.console import table
from moe_hw.errors import UsageError
from moe_hw.fit import arch_of
from rtl_gen.accumulate import AccumulateColumn
from rtl_gen.axi_arbiter import AxiArbiter
from rtl_gen.bridge import Bridge
from rtl_gen.bursts import Bursts
from rtl_gen.combine import Combine
from rtl_gen.csr_access import CsrAccess
from rtl_gen.datagrams import Datagrams
from rtl_gen.deframer import Deframer
from rtl_gen.dispatcher import Dispatcher
from rtl_gen.emit import to_verilog
from rtl_gen.expert_queues import ExpertQueues
from rtl_gen.expert_tables import ExpertTables
from rtl_gen.frame_queue import FrameQueue
from rtl_gen.framer import Framer
from rtl_gen.groups import Groups
from rtl_gen.hidden_writer import HiddenWriter
from rtl_gen.keys import Keys
from rtl_gen.loader import Loader
from rtl_gen.logit_memory import LogitMemory
from rtl_gen.matrix_segment import MatrixSegment
from rtl_gen.memory_access import MemoryAccess
from rtl_gen.output import Output
from rtl_gen.plane_loader import PlaneLoader
from rtl_gen.post import Post
from rtl_gen.probe import Probe
from rtl_gen.read_arbiter import ReadArbiter
from rtl_gen.registers import CSR_ADDR_BITS
from rtl_gen.requant import Requant
from rtl_gen.request_check import RequestCheck
from rtl_gen.requests import Requests
from rtl_gen.route_reader import RouteReader
from rtl_gen.router import Router
from rtl_gen.row import Row
from rtl_gen.score import Score
from rtl_gen.sdram_axi import SdramAxi
from rtl_gen.sdram_controller import SdramController
from rtl_gen.sequencer import Sequencer
from rtl_gen.softcap import Softcap
from rtl_gen.softmax import Softmax
from rtl_gen.streamer import Streamer
from rtl_gen.synthesis import ECP5, ULTRASCALE_PLUS, Resources, count, place_and_route
from rtl_gen.timing import Timing
from rtl_gen.topk import TopK
from rtl_gen.types import expert_bits
from rtl_gen.uart import UartReceiver, UartTransmitter
from rtl_gen.vector_buffer import VectorBuffer
from rtl_gen.vector_pipeline import VectorPipeline
from rtl_gen.walk import Walk
from rtl_gen.weigh import Weigh
from rtl_gen.writer import Writer

MINIMUM_MHZ = 80
"""The clock of the ULX3S preset, which no block of the fabric's domain may fall below."""

SDRAM_MHZ = 134
"""The clock of its SDRAM, rounded up."""

MINIMUM = {"sdram_controller": SDRAM_MHZ}
"""Blocks whose clock is not that of the fabric."""

CLOCK_HZ = MINIMUM_MHZ * 1_000_000

_MEMORY = load_board(DEFAULT_BOARD).memory

BLOCKS: dict[str, Callable[[Arch], wiring.Component]] = {
    "row": Row,
    "accumulate_column": AccumulateColumn,
    "softcap": lambda arch: Softcap(),
    "post": Post,
    "requant": Requant,
    "logit_memory": LogitMemory,
    "topk": lambda arch: TopK(arch.max_top_k, ACC_BITS, expert_bits(arch)),
    "weigh": Weigh,
    "score": Score,
    "softmax": Softmax,
    "keys": Keys,
    "groups": Groups,
    "expert_tables": ExpertTables,
    "router": Router,
    "route_reader": RouteReader,
    "expert_queues": ExpertQueues,
    "combine": Combine,
    "streamer": Streamer,
    "plane_loader": PlaneLoader,
    "vector_pipeline": VectorPipeline,
    "sequencer": Sequencer,
    "loader": Loader,
    "vector_buffer": VectorBuffer,
    "walk": Walk,
    "matrix_segment": MatrixSegment,
    "dispatcher": Dispatcher,
    "hidden_writer": HiddenWriter,
    "output": Output,
    "read_arbiter": lambda arch: ReadArbiter(arch, 5),
    "writer": Writer,
    "bursts": Bursts,
    "uart_receiver": lambda arch: UartReceiver(CLOCK_HZ, BAUD),
    "uart_transmitter": lambda arch: UartTransmitter(CLOCK_HZ, BAUD),
    "deframer": lambda arch: Deframer(),
    "frame_queue": lambda arch: FrameQueue(),
    "request_check": RequestCheck,
    "requests": Requests,
    "memory_access": MemoryAccess,
    "csr_access": lambda arch: CsrAccess(CSR_ADDR_BITS),
    "framer": lambda arch: Framer(),
    "datagrams": lambda arch: Datagrams(),
    "bridge": lambda arch: Bridge(arch, CLOCK_HZ, BAUD),
    "axi_arbiter": AxiArbiter,
    "sdram_axi": lambda arch: SdramAxi(arch, _MEMORY),
    "sdram_controller": lambda arch: SdramController(_MEMORY),
}
"""Every block that is measured, as the board's top level builds it."""

SEEDS = (1, 2, 3)
"""Places and routes of a block: one alone may be off by a third."""


@dataclass(frozen=True)
class Measurement:
    """A block's resources, alone, and the timings of all seeds."""

    block: str
    ecp5: Resources
    ultrascale_plus: Resources
    timings: tuple[Timing, ...]

    @property
    def fmax(self) -> float:
        """Median of the seeds in MHz."""
        return statistics.median(timing.fmax for timing in self.timings)

    @property
    def minimum(self) -> int:
        """The block's clock in MHz."""
        return MINIMUM.get(self.block, MINIMUM_MHZ)

    @property
    def middle(self) -> Timing:
        """The timing that is nearest to the median."""
        return min(self.timings, key=lambda timing: abs(timing.fmax - self.fmax))


def measure(block: str, arch: Arch, progress: Callable[[str], None]) -> Measurement:
    """Synthesise, place and route ``block``, a name in ``BLOCKS``.

    Raises:
        SetupError: a tool is missing or fails.
    """

    def said(step: str) -> None:
        progress(f"{block}: {step}")

    # A block has no pads. With registers inside its view, ABC9 of Yosys 0.70 does not die of some netlists.
    alone = to_verilog(BLOCKS[block](arch), "moe_block")
    probe = to_verilog(Probe(BLOCKS[block](arch)), "moe_probe")
    return Measurement(
        block,
        count(alone, "moe_block", ECP5, "-dff", progress=said),
        count(alone, "moe_block", ULTRASCALE_PLUS, "-noiopad -dff", progress=said),
        tuple(place_and_route(probe, "moe_probe", seed, progress=said) for seed in SEEDS),
    )


def report(measurements: Sequence[Measurement]) -> str:
    """The table of all blocks."""
    header = ("block", "LUT", "FF", "DSP", "EBR", "MHz", "min", "max", "xcup: LUT", "FF", "DSP", "RAMB36")
    return table(header, [_cells(measurement) for measurement in measurements])


def _cells(measurement: Measurement) -> list[str]:
    speeds = [timing.fmax for timing in measurement.timings]
    resources = [
        [f"{used.luts}", f"{used.flip_flops}", f"{used.dsps}", f"{used.block_rams:g}"]
        for used in (measurement.ecp5, measurement.ultrascale_plus)
    ]
    mhz = [f"{speed:.0f}" for speed in (measurement.fmax, min(speeds), max(speeds))]
    return [measurement.block, *resources[0], *mhz, *resources[1]]


def slow_path(measurement: Measurement) -> str:
    """One line about what limits a block."""
    path = measurement.middle
    return (
        f"{measurement.block}: {path.fmax:.1f} MHz from {path.start} to {path.end} through {path.cells} cells, "
        f"{path.logic:.1f} ns in them and {path.routing:.1f} ns between"
    )


def execute(blocks: Sequence[str]) -> int:
    """Measure ``blocks``, all if there are none, and print the table; 1 if one is too slow.

    Raises:
        UsageError: a block that does not exist.
        SetupError: a tool is missing or fails.
    """
    for block in blocks:
        if block not in BLOCKS:
            raise UsageError(f"block: expected one of {', '.join(BLOCKS)}, got {block!r}")
    arch = arch_of(load_board(DEFAULT_BOARD))
    names = list(blocks or BLOCKS)
    measurements = []
    for number, block in enumerate(names, start=1):
        prefix = f"[{number}/{len(names)}]"
        measurement = measure(block, arch, lambda step, prefix=prefix: print(prefix, step, file=sys.stderr, flush=True))
        measurements.append(measurement)
        print(prefix, slow_path(measurement), file=sys.stderr, flush=True)
    print(report(measurements))
    slow = [measurement for measurement in measurements if measurement.fmax < measurement.minimum]
    if slow:
        found = ", ".join(f"{block.block} {block.fmax:.1f} of {block.minimum} MHz" for block in slow)
        print(f"fmax: expected every block to be as fast as its clock, got {found}; add registers", file=sys.stderr)
    return 1 if slow else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rtl_gen.fmax",
        description="Synthesise, place and route each block alone for the LFE5U-85F of a ULX3S, and count it for "
        "UltraScale+. Results are cached.",
        epilog="Exit codes: 0 done, 1 a block is slower than its clock, 2 usage, 3 environment, 130 interrupted.",
    )
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help=f"{', '.join(BLOCKS)} (default: all)")
    args = parser.parse_args(argv)
    return guarded(lambda: execute(args.blocks))


if __name__ == "__main__":
    sys.exit(main())
