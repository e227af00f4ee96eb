"""The weight formats of a model's layers: one for all, or those that a file names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_hw.errors import UsageError

if TYPE_CHECKING:
    from moe_hw.spec import LayerSpec

SUFFIXES = (".yaml", ".yml")


def formats_of(text: str, specs: Sequence[LayerSpec]) -> list[str]:
    """What ``--format`` says of each MoE layer, as of ``moe_hw.formats.LayerFormat``.

    A file has a format for each number of a layer, and under ``default`` that of the others.

    Raises:
        UsageError: no such format, file, layer or expert.
    """
    from moe_hw.formats import layer_format

    names = _planned(Path(text), len(specs)) if text.endswith(SUFFIXES) else [text] * len(specs)
    for name, spec in zip(names, specs, strict=True):
        layer_format(name).of(spec.router.experts)
    return names


def _planned(path: Path, layers: int) -> list[str]:
    """The names that a file has for each layer."""
    plan = _read(path)
    default = plan.pop("default", None)
    unknown = [number for number in plan if not isinstance(number, int) or not 0 <= number < layers]
    if unknown:
        raise UsageError(f"{path}: expected MoE layers 0 to {layers - 1} or default, got {unknown[0]!r}")
    names = []
    for number in range(layers):
        name = plan.get(number, default)
        if not isinstance(name, str):
            raise UsageError(f"{path}: expected a format for MoE layer {number} or default, got {name!r}")
        names.append(name)
    return names


def _read(path: Path) -> dict[object, object]:
    import yaml

    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: expected a YAML file of formats, got: {str(error).splitlines()[0]}") from error
    if not isinstance(plan, dict):
        raise UsageError(f"{path}: expected lines of a layer's number and its format, got {plan!r}")
    return plan
