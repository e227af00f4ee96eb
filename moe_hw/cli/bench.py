"""``moe-hw bench``: MoE layers of a model at full size on a simulated board, next to what the hardware could do."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moe_hw.cli.console import Progress, positive, table
from moe_hw.cli.models import add_arguments, check_count, find_board, find_model
from moe_hw.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from boards import Board
    from host.driver import Device
    from moe_hw.quantised import CodedLayer
    from moe_hw.result import Result
    from moe_hw.spec import LayerSpec

STALLS = ("setup", "busy", "wait_weights", "wait_vectors", "wait_results", "wait_jobs", "output")
"""Counters that share the cycles among them."""

SAMPLE = 4
"""Tokens of a layer that are checked against the golden model, at most; results do not depend on the batch."""


def add_parser(commands: Any) -> None:
    command = commands.add_parser(
        "bench",
        help="measure a model's MoE layers on a simulated board",
        description="Simulate MoE layers of a model at full size and hold the cycles against the limits of memory and "
        "multipliers. Presets have drawn weights. Outputs of some tokens are compared with the golden model.",
    )
    add_arguments(command)
    command.add_argument("--layers", type=positive, default=1, metavar="L", help="MoE layers (default: %(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from host.driver import Device
    from host.transports.sim import open_board
    from moe_hw.fit import arch_of
    from moe_hw.formats import layer_format, weight_format
    from moe_hw.limits import check_model

    form = weight_format(args.format)
    board = find_board(args)
    model = find_model(args.model)
    check_count(model, args.layers)
    formats = [layer_format(form.name)] * args.layers
    check_model(model.specs[: args.layers], arch_of(board), formats, board.memory.size_bytes, model.name)
    with Progress() as progress:
        progress("making the layers")
        layers = model.layers(args.layers, args.format)
        started = time.perf_counter()
        progress("building the simulator")
        transport = open_board(board, progress)
        built = time.perf_counter() - started
        with Device(transport) as device:
            figures = measure(device, board, layers, args.tokens, progress)
    figures["build_seconds"] = round(built, 3)
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        print(f"{board.name}, {model.title}: {args.layers} of {len(model.specs)} MoE layers, {args.tokens} tokens")
        print(_table(figures))
    if not figures["bit_exact"]:
        raise DeviceError("outputs differ from the golden model; report this")
    return 0


def measure(
    device: Device, board: Board, layers: Sequence[CodedLayer], tokens: int, progress: Progress
) -> dict[str, Any]:
    """Run ``tokens`` random tokens through each layer; the figures of ``--json`` but for the build's."""
    import torch

    from moe_hw.arch import ROWS
    from moe_hw.estimate import Estimate, estimate
    from moe_hw.report import Report
    from sim.dram import ideal_reader

    report, estimated, ideal, seconds, exact = Report(), Estimate(), 0, 0.0, True
    for number, layer in enumerate(layers):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(tokens, layer.spec.hidden, generator=generator)
        progress.steps(number + 1, len(layers), f"{layer.name}: simulating")
        result, passed = _run(device, layer, x)
        progress.steps(number + 1, len(layers), f"{layer.name}: checking")
        exact &= _equals_golden(layer, x, result)
        report += result.report
        estimated += estimate(layer.spec, board, device.arch, layer.format, result.experts.numpy())
        ideal += ideal_reader(board, result.report.necessary_bytes)
        seconds += passed
    macs = sum(_macs(layer.spec, tokens) for layer in layers)
    cycles = report.cycles
    return {
        "cycles": cycles,
        "clock_mhz": board.clock_mhz,
        "macs": macs,
        "dram_bytes": report.dram_bytes,
        "memory_limit_cycles": round(report.memory_limit_cycles),
        "ideal_reader_cycles": ideal,
        "compute_limit_cycles": report.compute_limit_cycles,
        "roofline_fraction": max(ideal, report.compute_limit_cycles) / cycles,
        "pin_fraction": report.memory_fraction,
        "mac_fraction": macs / (cycles * ROWS * device.arch.columns),
        "stalls": {name: report.counters[name] for name in STALLS},
        "bit_exact": exact,
        "estimate_cycles": estimated.cycles,
        "estimate_deviation": estimated.cycles / cycles - 1,
        "sim_cycles_per_second": round(cycles / seconds),
        "run_seconds": round(seconds, 3),
    }


def _run(device: Device, layer: CodedLayer, x: torch.Tensor) -> tuple[Any, float]:
    """The layer's result and the seconds that it took. Only experts with a token are written to the device."""
    import numpy as np

    from moe_hw.formats import quantise_tokens
    from moe_hw.twins.layer import route_tokens

    layer.stored = np.unique(route_tokens(layer, quantise_tokens(x, layer.spec.constant)).experts).tolist()
    handle = device.load(layer, name=layer.name)
    started = time.perf_counter()
    result = handle(x)
    seconds = time.perf_counter() - started
    handle.unload()
    return result, seconds


def _equals_golden(layer: CodedLayer, x: torch.Tensor, result: Result) -> bool:
    import torch

    from moe_hw.twins.layer import golden

    sample = torch.linspace(0, len(x) - 1, min(SAMPLE, len(x))).long()
    expected = golden(layer, x[sample])
    pairs = ((expected.output, result.output), (expected.experts, result.experts), (expected.weights, result.weights))
    return all(torch.equal(wanted, got[sample]) for wanted, got in pairs)


def _macs(spec: LayerSpec, tokens: int) -> int:
    """Multiplications of weights that the layer's mathematics has, without padding and passes."""
    inter = spec.router.top_k * spec.expert.intermediate + (spec.shared.intermediate if spec.shared else 0)
    return tokens * spec.hidden * (spec.router_rows + 3 * inter)


def _table(figures: dict[str, Any]) -> str:
    rows: list[tuple[object, ...]] = []
    for name, value in figures.items():
        if name == "stalls":
            rows += [(f"  {part}", f"{count:,}", f"{count / figures['cycles']:.2%}") for part, count in value.items()]
        elif name.endswith(("_fraction", "_deviation")):
            rows.append((name, f"{value:.2%}", ""))
        else:
            rows.append((name, value if isinstance(value, bool) else f"{value:,}", ""))
    return table(("figure", "value", "of cycles"), rows)
