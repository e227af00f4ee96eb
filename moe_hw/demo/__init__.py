"""A small Qwen3-MoE model of Python source code, trained for this project; it needs no download."""

from __future__ import annotations

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""Checkpoint directory, as ``save_pretrained`` writes it; ``moe_hw/demo/train.py`` made it."""

HELD_OUT = Path(__file__).parent / "held_out.txt"
"""Text for a perplexity, from CPython 3.11's shlex.py (PSF licence), which the training held out."""

PROMPT = "def read_lines(path):\n"
"""Start of a text that the model continues plausibly."""
