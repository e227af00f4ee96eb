"""Texts: reading them, their token numbers, and what a model makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from moe_hw.errors import UsageError


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text-file: expected a readable UTF-8 file, got {path}: {error}") from None


def encode(tokenizer: Any, text: str, source: str) -> Any:
    """Token numbers ``[1, N]`` of a text, at least one."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    if ids.shape[1] == 0:
        raise UsageError(f"{source}: expected at least one token, got an empty text")
    return ids


def perplexity(model: Any, ids: Any) -> float:
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
