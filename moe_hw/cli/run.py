"""``moe-hw run``: a model's text with its MoE layers on a device, and what that cost."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from moe_hw.cli.console import Progress, add_format, add_scales, positive, table
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
        help="sim:BOARD, sim:BOARD.yaml or sim:DIRECTORY made by `moe-hw generate`, a board at a serial port, "
        "serial:PORT?board=BOARD, or one in the network, udp:HOST (default: %(default)s)",
    )
    command.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    command.add_argument(
        "--max-new-tokens", type=positive, default=32, metavar="N", help="tokens to generate (default: %(default)s)"
    )
    add_format(command)
    add_scales(command)
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
    from moe_hw.cli.plan import formats_of
    from moe_hw.cli.text import encode, perplexity, read_text
    from moe_hw.sites import layer_specs

    if args.text_file and not args.check:
        raise UsageError("expected --check together with --text-file: it is the text of the perplexity check")
    formats = formats_of(args.format, layer_specs(read_config(args.model)))
    text = read_text(args.text_file) if args.text_file else None
    with Progress() as progress:
        progress(f"loading {args.model}")
        tokenizer = load_tokenizer(args.model)
        model = load_model(args.model)
        prompt = encode(tokenizer, args.prompt, "--prompt")
        _check_length(model, prompt.shape[1] + args.max_new_tokens)
        progress(f"opening {args.device}")
        device = open_device(args.device, progress)
    with device:
        with Progress() as progress:
            acceleration = accelerate(
                model, device, formats, check=args.check, scales=args.scales, progress=progress.steps
            )
        ids = _generate(model, tokenizer, prompt, args)
        generating = acceleration.report
        print()
        print(_layer_table(acceleration.layers))
        kept = Counter(layer.stays for layer in acceleration.layers if layer.stays)
        for stays, count in kept.items():
            print(f"on the host, of {count} layers: {stays}")
        seconds = generating.cycles / (device.transport.clock_mhz * 1e6)
        new = ids.shape[1] - prompt.shape[1]
        print(
            f"{prompt.shape[1]} + {new} tokens: {generating.cycles:,} cycles in MoE layers, "
            f"{seconds:.3g} s at {device.transport.clock_mhz:g} MHz"
        )
        if not args.check:
            return 0
        if text is not None:
            ids = encode(tokenizer, text, str(args.text_file))
        with Progress() as progress:
            progress("measuring perplexity")
            accelerated = perplexity(model, ids)
            acceleration.restore()
            plain = perplexity(model, ids)
        source = args.text_file.name if args.text_file else "the text above"
        print(
            f"perplexity of {source}, {ids.shape[1]} tokens: {accelerated:.4f} in {args.format}, {plain:.4f} in float32"
        )
        checked = acceleration.equal + acceleration.failed
        print(f"bit-exact: {acceleration.equal} of {checked} layer calls")
    if acceleration.failed:
        raise DeviceError(f"{acceleration.failed} of {checked} layer calls differ from the golden model; report this")
    return 0


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
