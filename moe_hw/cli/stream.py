"""A checkpoint's MoE layers, with the weights of one at a time in memory."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from moe_hw.cli.checkpoint import (
    as_model_error,
    check_all_loaded,
    check_weights,
    from_tensors,
    language_model,
    read_config,
    stored_tensors,
)
from moe_hw.layer import MoELayer
from moe_hw.published import is_packed
from moe_hw.sites import sites_of


def _number(name: str) -> int | None:
    """The number of the model's layer that a tensor or a module belongs to: the first in its name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


class LayerStream:
    """The MoE layers of a checkpoint directory.

    transformers makes a model of the tensors of one layer, whatever they are called in the checkpoint; its other
    weights have no values and take no memory.

    Members:
        sites: the layers in the model's order, their weights not loaded.
        source: what identifies the checkpoint: its configuration, and the names, sizes and times of its files.

    Raises:
        ModelError: not a checkpoint directory, or one whose files are damaged.
        UnsupportedLayer: a layer that cannot be run.
    """

    def __init__(self, path: Path):
        self._path = path
        self._config = read_config(path)
        files = check_weights(path)
        stamps = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        self.source = [self._config.to_dict(), *stamps]
        self._tensors: defaultdict[int | None, dict[str, Any]] = defaultdict(dict)
        for name, tensor in stored_tensors(path, self._config, files).items():
            self._tensors[_number(name)][name] = tensor
        self.sites = sites_of(self._config)

    def layer(self, number: int) -> MoELayer:
        """Load a layer.

        Raises:
            ModelError: weights of it are missing, damaged or of another shape.
        """
        site = self.sites[number]
        tensors = self._tensors[_number(site.name)]
        with as_model_error(self._path):
            class_, config = language_model(self._config)
            dtype = None if is_packed(config) else _dtype(tensors)
            model, info = from_tensors(_Partial.of(class_), config, tensors, dtype)
        block = site.name if site.family else site.name.rpartition(".")[0]
        missing = [name for name in info["missing_keys"] if name.startswith(f"{block}.")]
        check_all_loaded(self._path, missing, info["mismatched_keys"])
        return site.within(model.eval()).layer()


def _dtype(tensors: dict[str, Any]) -> Any:
    """The narrowest type in which a layer's tensors are exact: float32, unless all floats have the same 16 bits."""
    import torch

    kinds = {tensor.get_dtype() for tensor in tensors.values()} - {"U8"}  # MXFP4, of which all have 8 bits
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(kinds.pop()) if len(kinds) == 1 else None


class _Partial:
    """What makes a model class leave the weights that it is not given without values, instead of drawing them."""

    @staticmethod
    def of(class_: type) -> type:
        return type(class_.__name__, (_Partial, class_), {"__module__": class_.__module__})

    def _move_missing_keys_from_meta_to_device(self, *args: Any) -> None:
        pass

    def _initialize_missing_keys(self, *args: Any) -> None:
        pass
