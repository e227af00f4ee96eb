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
_MOE = {"moe_intermediate_size": 24, "num_experts": 6}
_SHARED = {"moe_intermediate_size": 24, "num_experts": 4, "shared_expert_intermediate_size": 33}
_GRANITE = {"intermediate_size": 24, "num_local_experts": 5}
_LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_DEEPSEEK = {
    "intermediate_size": 50, "moe_intermediate_size": 24, "n_routed_experts": 6, "n_shared_experts": 2,
    "first_k_dense_replace": 0,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"intermediate_size": 24, "num_local_experts": 4}),
    "minimax": ("MiniMaxConfig", {"intermediate_size": 24, "num_local_experts": 4, "head_dim": 20}),
    "olmoe": ("OlmoeConfig", {"intermediate_size": 24, "num_experts": 5}),
    "flex_olmo": ("FlexOlmoConfig", {"intermediate_size": 24, "num_experts": 5}),
    "mellum": ("MellumConfig", {**_MOE, "head_dim": 20}),
    "qwen2_moe": ("Qwen2MoeConfig", _SHARED),
    "qwen3_moe": ("Qwen3MoeConfig", {**_MOE, "norm_topk_prob": True, "head_dim": 20}),
    "qwen3_next": ("Qwen3NextConfig", {**_SHARED, **_LINEAR, "head_dim": 20}),
    "qwen3_5_moe": ("Qwen3_5MoeTextConfig", {**_SHARED, **_LINEAR, "head_dim": 20}),
    "jamba": (
        "JambaConfig",
        {
            "intermediate_size": 24, "num_experts": 4, "use_mamba_kernels": False, "expert_layer_period": 1,
            "expert_layer_offset": 0, "attn_layer_period": 1, "attn_layer_offset": 0,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        {
            **_DEEPSEEK, "routed_scaling_factor": 1.7, "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 2,
        },
    ),
    "hunyuan_v1_moe": (
        "HunYuanMoEV1Config", {"intermediate_size": 24, "num_experts": 4, "moe_topk": 2, "head_dim": 20},
    ),
    "granitemoe": ("GraniteMoeConfig", _GRANITE),
    "granitemoe_swa": ("GraniteMoeSWAConfig", _GRANITE),
    "granitemoeshared": ("GraniteMoeSharedConfig", {**_GRANITE, "shared_intermediate_size": 33}),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            **_GRANITE, "shared_intermediate_size": 33, "layer_types": ["attention"] * 2, "mamba_n_heads": 4,
            "mamba_d_head": 20,
        },
    ),
    "aria_text": (
        "AriaTextConfig", {"intermediate_size": 24, "moe_num_experts": 5, "moe_topk": 2, "moe_num_shared_experts": 2},
    ),
    "gpt_oss": ("GptOssConfig", {"intermediate_size": 24, "num_local_experts": 4, "head_dim": 20}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **_DEEPSEEK, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": None,
            "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 2,
        },
    ),
    "phimoe": ("PhimoeConfig", {"intermediate_size": 24, "num_local_experts": 4}),
    "dbrx": (
        "DbrxConfig",
        {
            "d_model": 40, "n_heads": 2, "n_layers": 2, "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 40},
        },
    ),
    "jetmoe": (
        "JetMoeConfig", {"intermediate_size": 24, "num_local_experts": 4, "kv_channels": 20},
    ),
    "cohere2_moe": (
        "Cohere2MoeConfig",
        {
            "intermediate_size": 24, "num_experts": 5, "head_dim": 20, "num_shared_experts": 1,
            "expert_selection_fn": "softmax", "shared_expert_combination_strategy": "average",
        },
    ),
}  # fmt: skip
"""Class and sizes of the configurations of whole models, by ``model_type``."""


def config_of(family: str, **changes: Any) -> Any:
    """A configuration of a model of ``family`` with two MoE layers of hidden size 40."""
    name, sizes = CONFIGS[family]
    return getattr(transformers, name)(**{**SIZES, **sizes, **changes})


def tiny_model(family: str, seed: int = 0) -> Any:
    """A model of ``family`` in inference mode with two MoE layers of hidden size 40."""
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config_of(family)).eval()


def save_checkpoint(path: Path, family: str = "qwen3_moe", **changes: Any) -> Path:
    """A checkpoint directory of a tiny model that reads and writes bytes; ``changes`` are of its configuration."""
    torch.manual_seed(1)
    config = config_of(family)
    for name, value in {"vocab_size": 257, **changes}.items():
        setattr(config, name, value)
    transformers.AutoModelForCausalLM.from_config(config).eval().save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)} | {"<eos>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(path)
    return path
