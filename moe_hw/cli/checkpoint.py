"""Reading a checkpoint directory: offline, quiet, and with one line for whatever is wrong with it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moe_hw.errors import ModelError

INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def read_config(path: Path) -> Any:
    """The transformers configuration of a checkpoint.

    Raises:
        ModelError: not a checkpoint directory, or a configuration that transformers does not know.
    """
    if not path.is_dir():
        raise ModelError(f"expected a checkpoint directory, got {path}, which is none; give one with config.json")
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: expected config.json, got none; give the directory of a transformers checkpoint")
    transformers = _transformers()
    with as_model_error(path / "config.json"):
        if not isinstance(json.loads((path / "config.json").read_text(encoding="utf-8")), dict):
            raise ModelError(f"{path / 'config.json'}: expected a JSON object, got another value; copy it again")
        return transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def load_model(path: Path) -> Any:
    """The causal language model of a checkpoint in float32, in inference mode.

    Raises:
        ModelError: weights are missing, truncated, or do not belong to the configuration.
    """
    config = read_config(path)
    files = check_weights(path)
    tensors = stored_tensors(path, config, files)
    with as_model_error(path):
        class_, config = language_model(config)
        model, info = from_tensors(class_, config, tensors)
    check_all_loaded(path, info["missing_keys"], info["mismatched_keys"])
    return model.eval()


def language_model(config: Any) -> tuple[Any, Any]:
    """The class of a configuration's causal language model, and its own configuration: a model with images has several.

    Raises:
        ModelError: transformers has no such model.
    """
    mapping = _transformers().AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise ModelError(f"{config.model_type}: expected a causal language model, transformers has none of this type")
    class_, text = mapping[type(config)], config.sub_configs.get("text_config")
    if text is None or class_.config_class is not text:
        return class_, config
    quantization = getattr(config, "quantization_config", None)
    config = copy.deepcopy(config.get_text_config())
    if quantization is not None:
        config.quantization_config = quantization
    return class_, config


def from_tensors(class_: Any, config: Any, tensors: dict[str, Any], dtype: Any = None) -> Any:
    """A model and how it was loaded, from tensors, or slices of files, by their names in the checkpoint.

    Parameters:
        dtype: of the weights; float32 if not given.
    """
    import torch

    from moe_hw.published import is_packed, unpacked

    if is_packed(config):
        quantization = config.quantization_config
        config = copy.deepcopy(config)
        del config.quantization_config
        tensors = unpacked({name: tensor[...] for name, tensor in tensors.items()}, quantization)
    return class_.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=dtype or torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        # The default one multiplies matrices in groups, and refuses rows that are no multiple of 16 bytes.
        experts_implementation="eager",
    )


def check_all_loaded(path: Path, missing: Iterable[str], mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    """transformers would go on with random weights in place of those.

    Raises:
        ModelError: a weight is missing, or has another shape.
    """
    if names := sorted(missing):
        raise ModelError(f"{path}: expected {len(names)} more weights such as {names[0]}, got none; copy it again")
    if others := sorted(mismatched):
        name, found, expected = others[0]
        raise ModelError(
            f"{path}: expected {name} of shape {list(expected)}, got {list(found)}; use these weights' config.json"
        )


def stored_tensors(path: Path, config: Any, files: list[Path]) -> dict[str, Any]:
    """The tensors of a checkpoint's files, read when they are indexed.

    Raises:
        ModelError: the configuration says that another library has packed them, and none is packed.
    """
    from safetensors import safe_open

    from moe_hw.published import is_packed

    tensors = {}
    for file in files:
        weights = safe_open(file, framework="pt")
        for name in weights.keys():  # noqa: SIM118 (not a mapping)
            tensors[name] = weights.get_slice(name)
    if is_packed(config) and not any(name.endswith(".qweight") for name in tensors):
        raise ModelError(f"{path}: expected packed layers (*.qweight), got none; mend quantization_config")
    return tensors


def load_tokenizer(path: Path) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        # transformers would go on with a tokenizer that knows no token.
        raise ModelError(f"{path}: expected {' or '.join(TOKENIZER_FILES)}, got none; copy the tokenizer too")
    transformers = _transformers()
    with as_model_error(path):
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def _transformers() -> Any:
    """transformers, set to stay offline and silent."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def check_weights(path: Path) -> list[Path]:
    """The safetensors files, each there and whole; transformers itself would stop with a traceback."""
    from safetensors import SafetensorError, safe_open

    files = {file.name for file in path.glob("*.safetensors")}
    if (path / INDEX).is_file():
        with as_model_error(path / INDEX):
            files = set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    if not files:
        raise ModelError(f"{path}: expected weights in *.safetensors, got none; convert the checkpoint to safetensors")
    for name in sorted(files):
        if not (path / name).is_file():
            raise ModelError(f"{path}: expected {name}, which {INDEX} names, got none; copy the checkpoint again")
        try:
            with safe_open(path / name, framework="np") as weights:
                weights.keys()
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path / name}: expected a whole safetensors file, got: {error}; copy it again") from None
    return [path / name for name in sorted(files)]


@contextlib.contextmanager
def as_model_error(path: Path) -> Iterator[None]:
    """Whatever transformers raises about a file is about the user's file, and has many lines and types."""
    try:
        yield
    except (ModelError, ImportError, MemoryError):
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{path} cannot be read: {line}; mend it or copy the checkpoint again") from None
