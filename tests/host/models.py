"""Tiny random models of the families, for the tests of the driver and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SIZES = {
    "vocab_size": 61,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "eos_token_id": None,
    "pad_token_id": None,
    "bos_token_id": None,
}
CONFIGS: dict[str, Any] = {
    "mixtral": lambda: transformers.MixtralConfig(intermediate_size=24, num_local_experts=4, **SIZES),
    "olmoe": lambda: transformers.OlmoeConfig(intermediate_size=24, num_experts=5, **SIZES),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        moe_intermediate_size=24, num_experts=4, shared_expert_intermediate_size=33, **SIZES
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        moe_intermediate_size=24, num_experts=6, norm_topk_prob=True, head_dim=20, **SIZES
    ),
}


def tiny_model(family: str, seed: int = 0) -> Any:
    """A model of ``family`` in inference mode with two MoE layers of hidden size 40."""
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


def save_checkpoint(path: Path, family: str = "qwen3_moe", **changes: Any) -> Path:
    """A checkpoint directory of a tiny model that reads and writes bytes; ``changes`` are of its configuration."""
    torch.manual_seed(1)
    config = CONFIGS[family]()
    for name, value in {"vocab_size": 257, **changes}.items():
        setattr(config, name, value)
    transformers.AutoModelForCausalLM.from_config(config).eval().save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)} | {"<eos>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(path)
    return path
