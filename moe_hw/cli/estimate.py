"""``moe-hw estimate``: what all MoE layers of a model cost on a board, without simulating."""

from __future__ import annotations

import argparse
from typing import Any

from moe_hw.cli.console import table
from moe_hw.cli.models import add_arguments, find_board, find_model, synthetic_layers


def add_parser(commands: Any) -> None:
    command = commands.add_parser(
        "estimate",
        help="estimate a model's MoE layers on a board, without simulating",
        description="Estimate the cycles of all MoE layers of a model with a closed-form model of the accelerator. "
        "Random tokens are routed by drawn weights, once for each shape of a layer.",
    )
    add_arguments(command)
    command.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    import torch

    from moe_hw.estimate import Estimate, estimate
    from moe_hw.fit import arch_of
    from moe_hw.formats import layer_format, quantise_tokens, weight_format
    from moe_hw.limits import Footprint, check_model
    from moe_hw.twins.layer import route_tokens

    form = weight_format(args.format)
    board = find_board(args)
    arch = arch_of(board)
    model = find_model(args.model)
    shapes = list(dict.fromkeys(model.specs))
    for spec in shapes:
        check_model([spec], arch, [layer_format(args.format)], board.memory.size_bytes, model.name)
    total, bytes_of_all = Estimate(), 0
    for layer in synthetic_layers(shapes, len(shapes), args.format):
        spec, count = layer.spec, model.specs.count(layer.spec)
        x = torch.randn(args.tokens, spec.hidden, generator=torch.Generator().manual_seed(0))
        experts = route_tokens(layer, quantise_tokens(x, layer.spec.constant)).experts
        total += estimate(spec, board, arch, form, experts) * count
        bytes_of_all += Footprint(spec, arch, form.bits).image_bytes * count
    print(f"{board.name}, {model.title}: {len(model.specs)} MoE layers, {args.tokens} tokens, {args.format}")
    seconds = total.cycles / (board.clock_mhz * 1e6)
    rows = [
        ("cycles", f"{total.cycles:,}", ""),
        *((f"  {name}", f"{cycles:,.0f}", f"{cycles / total.cycles:.2%}") for name, cycles in total.phases.items()),
        ("seconds", f"{seconds:.6g}", ""),
        ("tokens/s", f"{args.tokens / seconds:.5g}", ""),
        ("limited by", total.limit, f"{total.resources[total.limit] / total.cycles:.2%}"),
        ("bytes of all layers", f"{bytes_of_all:,}", ""),
        ("bytes of the board", f"{board.memory.size_bytes:,}", ""),
    ]
    print(table(("estimate", "value", "of cycles"), rows))
    if bytes_of_all > board.memory.size_bytes:
        print("the board holds only some of the layers: bringing in the others is not included")
    print("attention and other parts than MoE layers are not included")
    return 0
