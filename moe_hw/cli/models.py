"""What ``--model`` may name where sizes matter and not the text: a preset, or a checkpoint directory."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moe_hw.cli.console import add_format, positive
from moe_hw.errors import UsageError

if TYPE_CHECKING:
    from boards import Board
    from moe_hw.quantised import CodedLayer
    from moe_hw.spec import LayerSpec


@dataclass(frozen=True)
class Model:
    """The MoE layers of a model.

    Attributes:
        name: as the user gave it.
        specs: of every MoE layer, in model order.
        stands_in_for: what the model does otherwise; empty if it does not.
        layers: makes the first so many layers in a weight format.
    """

    name: str
    specs: Sequence[LayerSpec]
    stands_in_for: str
    layers: Callable[[int, str], Sequence[CodedLayer]]

    @property
    def title(self) -> str:
        """The name, with a remark if these are not the model's own layers."""
        return self.name + (f" (something else stands in for: {self.stands_in_for})" if self.stands_in_for else "")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments that say what runs where."""
    command.add_argument("--board", default="ulx3s-85f", help="a board's name or a YAML file (default: %(default)s)")
    command.add_argument("--model", required=True, metavar="PRESET|DIR", help="a preset or a checkpoint directory")
    command.add_argument("--tokens", type=positive, default=1, metavar="N", help="tokens (default: %(default)s)")
    add_format(command, of_experts=False)
    command.add_argument("--columns", type=positive, metavar="C", help="columns of the array (default: the board's)")


def find_board(args: argparse.Namespace) -> Board:
    """The board with ``--columns`` and as many lanes as they can feed, and held against its budget.

    Raises:
        UsageError: there is no such board, or the accelerator does not fit it.
    """
    from boards import load_board
    from moe_hw import fit
    from moe_hw.arch import most_lanes

    board = load_board(args.board)
    if args.columns:
        lanes = min(fit.arch_of(board).lanes, most_lanes(args.columns))
        sizes = {**board.accelerator, "columns": args.columns, "lanes": lanes}
        board = dataclasses.replace(board, accelerator=sizes)
    fit.check(board, fit.arch_of(board))
    return board


def find_model(name: str) -> Model:
    """The preset or checkpoint of this name; weights are not read yet.

    Raises:
        UsageError: there is no such preset.
        ModelError: the directory is no checkpoint of a supported model.
    """
    from moe_hw.presets import PRESETS, find_preset

    if name not in PRESETS and ("/" in name or Path(name).is_dir()):
        from moe_hw.cli.checkpoint import read_config
        from moe_hw.sites import layer_specs

        return Model(name, layer_specs(read_config(Path(name))), "", partial(_checkpoint_layers, Path(name)))
    preset = find_preset(name)
    specs = [preset.spec] * preset.layers
    return Model(name, specs, preset.stands_in_for, partial(synthetic_layers, specs))


def synthetic_layers(specs: Sequence[LayerSpec], count: int, weight_format: str) -> Sequence[CodedLayer]:
    """The first ``count`` layers with drawn weights."""
    from moe_hw.synthetic import SyntheticLayer

    return [SyntheticLayer(spec, weight_format, seed, f"MoE layer {seed}") for seed, spec in enumerate(specs[:count])]


def _checkpoint_layers(path: Path, count: int, weight_format: str) -> Sequence[CodedLayer]:
    from moe_hw.cli.stream import LayerStream
    from moe_hw.quantised import QuantisedLayer

    stream = LayerStream(path)
    names = [site.name for site in stream.sites[:count]]
    return [QuantisedLayer(stream.layer(number), weight_format, name) for number, name in enumerate(names)]


def check_count(model: Model, count: int) -> None:
    """The model has as many layers as ``--layers`` asks for.

    Raises:
        UsageError: it has fewer.
    """
    if count > len(model.specs):
        raise UsageError(f"--layers: expected at most the {len(model.specs)} of {model.name}, got {count}")
