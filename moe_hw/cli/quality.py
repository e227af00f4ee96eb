"""``moe-hw quality``: what each weight format costs a model, layer by layer and in perplexity."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from moe_hw.cli.console import Progress, table
from moe_hw.errors import UsageError


def add_parser(commands: Any) -> None:
    command = commands.add_parser(
        "quality",
        help="measure what weight formats cost a model",
        description="Run a text through a checkpoint with its MoE layers in the golden model, the accelerator's exact "
        "arithmetic, and print each layer's errors against float64 and the model's perplexity against float32.",
    )
    command.add_argument("--model", type=Path, required=True, metavar="DIR", help="checkpoint directory (safetensors)")
    command.add_argument(
        "--format",
        action="append",
        metavar="F[:SCALES]",
        help="weight format as of pack, and how its scales are chosen (largest, mse or grid); may be repeated "
        "(default: int4, int4:mse and int8)",
    )
    command.add_argument("--text-file", type=Path, required=True, metavar="FILE", help="the text")
    command.add_argument("--tokens", type=int, default=512, metavar="N", help="of the text (default: %(default)s)")
    command.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from host.integrate import accelerate
    from moe_hw.cli.checkpoint import load_model, load_tokenizer, read_config
    from moe_hw.cli.plan import formats_of
    from moe_hw.cli.text import encode, perplexity, read_text
    from moe_hw.quality import MeasuringDevice
    from moe_hw.sites import layer_specs

    formats = [_parsed(text) for text in args.format or ("int4", "int4:mse", "int8")]
    if args.tokens < 2:
        raise UsageError(f"--tokens: expected 2 or more, got {args.tokens}")
    text = read_text(args.text_file)
    specs = layer_specs(read_config(args.model))
    of_layers = [formats_of(form, specs) for form, _ in formats]
    with Progress() as progress:
        progress(f"loading {args.model}")
        ids = encode(load_tokenizer(args.model), text, str(args.text_file))[:, : args.tokens]
        model = load_model(args.model)
        progress("perplexity in float32")
        exact = perplexity(model, ids)
    summary = []
    for number, (form, scales) in enumerate(formats):
        device = MeasuringDevice()
        with Progress() as progress:
            progress(f"[{number}/{len(formats)}] {form} with {scales} scales")
            acceleration = accelerate(
                model,
                device,  # type: ignore[arg-type]
                of_layers[number],
                scales=scales,
                progress=progress.steps,
            )
            try:
                found = perplexity(model, ids)
            finally:
                acceleration.restore()
        print(f"{form}, {scales} scales, {ids.shape[1]} tokens")
        print(_layer_table(device.layers))
        print()
        sqnr = sum(layer.sqnr for layer in device.layers) / len(device.layers)
        overflows = sum(layer.overflows for layer in device.layers)
        summary.append((form, scales, f"{sqnr:.2f}", _agreement(device.layers), overflows, f"{found:.4f}"))
    header = ("format", "scales", "mean SQNR dB", "same experts", "overflows", "perplexity")
    print(table(header, [*summary, ("float32", "", "", "", "", f"{exact:.4f}")], left=2))
    return 0


def _parsed(text: str) -> tuple[str, str]:
    """Format and scales.

    Raises:
        UsageError: there is no such choice of scales.
    """
    from moe_hw.formats import SCALES

    form, _, scales = text.partition(":")
    if scales and scales not in SCALES:
        raise UsageError(f"--format: expected {form}:{' or '.join(SCALES)}, got {text!r}")
    return form, scales or SCALES[0]


def _agreement(layers: list[Any]) -> str:
    """Tokens, over the layers that route, whose experts are the reference's."""
    routed = [layer for layer in layers if layer.agreed is not None]
    tokens = sum(layer.tokens for layer in routed)
    return f"{sum(layer.agreed for layer in routed) / tokens:.2%}" if tokens else "on the host"


def _layer_table(layers: list[Any]) -> str:
    rows = [
        (
            layer.name,
            f"{layer.sqnr:.2f}",
            _agreement([layer]),
            layer.overflows,
            f"{layer.worst_tensor} ({layer.worst_sqnr:.2f} dB)",
        )
        for layer in layers
    ]
    return table(("layer", "SQNR dB", "same experts", "overflows", "worst tensor"), rows)
