"""``moe-hw run``: a model's text with its MoE layers on a device, and what that cost."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from moe_hw.cli.console import Progress, positive, table
from moe_hw.errors import DeviceError, UsageError


def add_parser(commands: Any) -> None:
    command = commands.add_parser(
        "run",
        help="generate text with a device",
        description="Generate text with a checkpoint whose MoE layers run on a device, and print what each layer cost.",
    )
    command.add_argument("--model", type=Path, required=True, metavar="DIR", help="checkpoint directory (safetensors)")
    command.add_argument(
        "--device",
        default="sim:ulx3s-85f",
        metavar="URL",
        help="sim:BOARD, sim:BOARD.yaml or sim:DIRECTORY made by `moe-hw generate` (default: %(default)s)",
    )
    command.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    command.add_argument(
        "--max-new-tokens", type=positive, default=32, metavar="N", help="tokens to generate (default: %(default)s)"
    )
    command.add_argument("--format", default="int4", help="weight format: int4 or int8 (default: %(default)s)")
    command.add_argument(
        "--check",
        action="store_true",
        help="compare every layer call with the golden model bit for bit, and the perplexity with the float32 model's",
    )
    command.add_argument(
        "--text-file", type=Path, metavar="FILE", help="text of --check's perplexity (default: what was generated)"
    )
    command.add_argument("--seed", type=int, metavar="S", help="sample with this seed (default: the likeliest token)")
    command.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from host.driver import open_device
    from host.integrate import accelerate
    from moe_hw.cli.checkpoint import load_model, load_tokenizer, read_config
    from moe_hw.families import layer_specs
    from moe_hw.formats import weight_format

    weight_format(args.format)
    if args.text_file and not args.check:
        raise UsageError("expected --check together with --text-file: it is the text of the perplexity check")
    layer_specs(read_config(args.model))
    text = _read_text(args.text_file) if args.text_file else None
    with Progress() as progress:
        progress(f"loading {args.model}")
        tokenizer = load_tokenizer(args.model)
        model = load_model(args.model)
        prompt = _encode(tokenizer, args.prompt, "--prompt")
        _check_length(model, prompt.shape[1] + args.max_new_tokens)
        progress(f"opening {args.device}")
        device = open_device(args.device, progress)
    with device:
        with Progress() as progress:
            acceleration = accelerate(model, device, args.format, check=args.check, progress=progress.steps)
        ids = _generate(model, tokenizer, prompt, args)
        generating = acceleration.report
        print()
        print(_layer_table(acceleration.layers))
        seconds = generating.cycles / (device.transport.clock_mhz * 1e6)
        new = ids.shape[1] - prompt.shape[1]
        print(
            f"{prompt.shape[1]} + {new} tokens: {generating.cycles:,} cycles in MoE layers, "
            f"{seconds:.3g} s at {device.transport.clock_mhz:g} MHz"
        )
        if not args.check:
            return 0
        if text is not None:
            ids = _encode(tokenizer, text, str(args.text_file))
        with Progress() as progress:
            progress("measuring perplexity")
            accelerated = _perplexity(model, ids)
            acceleration.restore()
            plain = _perplexity(model, ids)
        source = args.text_file.name if args.text_file else "the text above"
        print(
            f"perplexity of {source}, {ids.shape[1]} tokens: {accelerated:.4f} in {args.format}, {plain:.4f} in float32"
        )
        checked = acceleration.equal + acceleration.failed
        print(f"bit-exact: {acceleration.equal} of {checked} layer calls")
    if acceleration.failed:
        raise DeviceError(f"{acceleration.failed} of {checked} layer calls differ from the golden model; report this")
    return 0


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text-file: expected a readable UTF-8 file, got {path}: {error}") from None


def _encode(tokenizer: Any, text: str, source: str) -> Any:
    """Token numbers ``[1, N]`` of a text, at least one."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    if ids.shape[1] == 0:
        raise UsageError(f"{source}: expected at least one token, got an empty text")
    return ids


def _check_length(model: Any, length: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", length)
    if length > limit:
        raise UsageError(
            f"expected at most {limit} tokens of prompt and --max-new-tokens together, got {length}; "
            "shorten one of them"
        )


def _generate(model: Any, tokenizer: Any, prompt: Any, args: argparse.Namespace) -> Any:
    """Write the continuation to stdout as it comes; token numbers of prompt and continuation ``[1, N]``."""
    import torch
    from transformers import TextStreamer

    sampling = {"do_sample": False}
    if args.seed is not None:
        torch.manual_seed(args.seed)
        sampling = {"do_sample": True}
    with torch.inference_mode():
        return model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=args.max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
            streamer=TextStreamer(tokenizer, skip_special_tokens=True),
            **sampling,
        )


def _perplexity(model: Any, ids: Any) -> float:
    """Perplexity of a text in stretches that the model can take, each of at least two tokens."""
    import torch

    length = getattr(model.config, "max_position_embeddings", ids.shape[1])
    loss = torch.zeros((), dtype=torch.float64)
    count = 0
    with torch.inference_mode():
        for stretch in ids.split(length, dim=1):
            if stretch.shape[1] > 1:
                logits = model(stretch).logits[0, :-1].double()
                loss += torch.nn.functional.cross_entropy(logits, stretch[0, 1:], reduction="sum")
                count += stretch.shape[1] - 1
    return math.exp(float(loss) / count) if count else math.nan


def _layer_table(layers: list[Any]) -> str:
    rows = []
    for layer in layers:
        report = layer.report
        rows.append(
            (
                layer.name,
                layer.calls,
                f"{report.cycles:,}",
                f"{report.dram_bytes:,}",
                report.experts_used,
                f"{report.memory_fraction:.1%}",
                f"{report.compute_fraction:.1%}",
            )
        )
    header = ("layer", "calls", "cycles", "bytes", "experts used", "of memory limit", "of multiplier limit")
    return table(header, rows)
