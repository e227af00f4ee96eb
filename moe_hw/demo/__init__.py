"""A small Qwen3-MoE model of Python source code, trained for this project; it needs no download."""

from __future__ import annotations

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""Checkpoint directory, as ``save_pretrained`` writes it; ``moe_hw/demo/train.py`` made it."""

PROMPT = "def read_lines(path):\n"
"""Start of a text that the model continues plausibly."""
