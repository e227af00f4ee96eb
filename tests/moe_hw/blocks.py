"""A tiny MoE block, with random weights, of every entry of the families of transformers 5.23.

A block's configuration is that of its class with the sizes of :data:`SIZES` in place of those it has.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

HIDDEN = 40

SIZES = {
    "hidden_size": HIDDEN, "d_model": HIDDEN, "moe_intermediate_size": 24, "intermediate_size": 24, "d_ff": 24,
    "ffn_hidden_size": 24, "expert_ffn_hidden_size": 24, "shared_expert_intermediate_size": 33,
    "shared_intermediate_size": 33, "moe_shared_intermediate_size": 33, "moe_shared_expert_intermediate_size": 33,
    "num_experts": 6, "n_routed_experts": 6, "num_local_experts": 6, "moe_num_experts": 6, "zero_expert_num": 3,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2, "moe_top_k": 2, "top_k_experts": 2,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1,
    "routed_scaling_factor": 1.7, "num_hidden_layers": 2, "vocab_size": 61, "num_attention_heads": 2,
    "num_key_value_heads": 2, "first_k_dense_replace": 0,
}  # fmt: skip

Call = Callable[[Any, torch.Tensor], Any]
"""Calls a block with ``[batch, sequence, hidden]``."""


def _plainly(block: Any, x: torch.Tensor) -> Any:
    return block(x)


def _without_attention(layer: Any, x: torch.Tensor) -> Any:
    """Of a decoder layer that has the MoE inline."""

    class Attention(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
            return hidden_states, None

    layer.self_attn = Attention()
    return layer(x)


def _some_of_vision(block: Any, x: torch.Tensor) -> Any:
    kinds = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2]) % 3
    return block(x, kinds)


def _by_token(block: Any, x: torch.Tensor) -> Any:
    return block(x, torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2]) % 61)


@dataclass(frozen=True)
class Entry:
    """How to build a block.

    Attributes:
        module: its package in ``transformers.models``.
        block: its class.
        config: the class of its configuration.
        changes: of the configuration, beside ``SIZES``; None keeps the class's own value.
        layer: which layer of the model.
        call: how it is called.
        arguments: more of its constructor.
    """

    module: str
    block: str
    config: str
    changes: dict[str, Any] = field(default_factory=dict)
    layer: int = 0
    call: Call = _plainly
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 1, **changes: Any) -> Any:
        """The block in inference mode, with weights that keep activations of order one."""
        package = f"transformers.models.{self.module}"
        configs = importlib.import_module(f"{package}.configuration_{self.module}")
        models = importlib.import_module(f"{package}.modeling_{self.module}")
        config_class = getattr(configs, self.config)
        known = config_class().to_dict()
        sizes = {name: value for name, value in SIZES.items() if name in known}
        given = {**sizes, **self.changes, **changes}
        config = config_class(**{name: value for name, value in given.items() if value is not None})
        config._experts_implementation = "eager"
        block_class = getattr(models, self.block)
        parameters = inspect.signature(block_class.__init__).parameters
        arguments = {"layer_idx": self.layer} if "layer_idx" in parameters else {}
        block = block_class(config, **arguments, **self.arguments).eval()
        torch.manual_seed(seed)
        for parameter in block.parameters():
            if parameter.is_floating_point():
                torch.nn.init.normal_(parameter, std=(parameter.shape[-1] if parameter.dim() > 1 else 4) ** -0.5)
        for name, buffer in block.named_buffers():
            if "bias" in name:
                torch.nn.init.normal_(buffer, std=0.1)
        return block


ENTRIES = {
    "mixtral": Entry("mixtral", "MixtralSparseMoeBlock", "MixtralConfig"),
    "minimax": Entry("minimax", "MiniMaxSparseMoeBlock", "MiniMaxConfig"),
    "phimoe": Entry("phimoe", "PhimoeSparseMoeBlock", "PhimoeConfig"),
    "olmoe": Entry("olmoe", "OlmoeSparseMoeBlock", "OlmoeConfig"),
    "flex_olmo": Entry("flex_olmo", "FlexOlmoSparseMoeBlock", "FlexOlmoConfig"),
    "qwen2_moe": Entry("qwen2_moe", "Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig"),
    "qwen3_moe": Entry("qwen3_moe", "Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig"),
    "qwen3_vl_moe": Entry("qwen3_vl_moe", "Qwen3VLMoeTextSparseMoeBlock", "Qwen3VLMoeTextConfig"),
    "qwen3_omni_moe_thinker": Entry(
        "qwen3_omni_moe", "Qwen3OmniMoeThinkerTextSparseMoeBlock", "Qwen3OmniMoeTextConfig"
    ),
    "mellum": Entry("mellum", "MellumSparseMoeBlock", "MellumConfig"),
    "qwen3_next": Entry("qwen3_next", "Qwen3NextSparseMoeBlock", "Qwen3NextConfig"),
    "qwen3_5_moe": Entry("qwen3_5_moe", "Qwen3_5MoeSparseMoeBlock", "Qwen3_5MoeTextConfig"),
    "qwen4_exp": Entry("qwen4_exp", "Qwen4ExpTextSparseMoeBlock", "Qwen4ExpTextConfig"),
    "jamba": Entry("jamba", "JambaSparseMoeBlock", "JambaConfig"),
    "dbrx": Entry("dbrx", "DbrxFFN", "DbrxConfig"),
    "hunyuan_v1_moe": Entry("hunyuan_v1_moe", "HunYuanMoEV1Moe", "HunYuanMoEV1Config"),
    "ernie4_5_moe": Entry("ernie4_5_moe", "Ernie4_5_MoeSparseMoeBlock", "Ernie4_5_MoeConfig"),
    "deepseek_v2": Entry("deepseek_v2", "DeepseekV2Moe", "DeepseekV2Config"),
    "deepseek_ocr2": Entry("deepseek_ocr2", "DeepseekOcr2TextMoe", "DeepseekOcr2TextConfig"),
    "unlimited_ocr": Entry("unlimited_ocr", "UnlimitedOcrTextMoe", "UnlimitedOcrTextConfig"),
    "mistral4": Entry("mistral4", "Mistral4MoE", "Mistral4Config"),
    "mistral_large4": Entry("mistral_large4", "MistralLarge4TextMoE", "MistralLarge4TextConfig"),
    "longcat_flash": Entry("longcat_flash", "LongcatFlashMoE", "LongcatFlashConfig"),
    "gpt_oss": Entry("gpt_oss", "GptOssMLP", "GptOssConfig"),
    "openai_privacy_filter": Entry("openai_privacy_filter", "OpenAIPrivacyFilterMLP", "OpenAIPrivacyFilterConfig"),
    "granitemoe": Entry("granitemoe", "GraniteMoeMoE", "GraniteMoeConfig"),
    "granitemoe_swa": Entry("granitemoe_swa", "GraniteMoeSWAMoE", "GraniteMoeSWAConfig"),
    "granitemoeshared": Entry("granitemoeshared", "GraniteMoeSharedMoE", "GraniteMoeSharedConfig"),
    "jetmoe": Entry("jetmoe", "JetMoeMoE", "JetMoeConfig"),
    "aria": Entry("aria", "AriaTextMoELayer", "AriaTextConfig"),
    "cohere2_moe": Entry("cohere2_moe", "Cohere2MoeSparseMoeBlock", "Cohere2MoeConfig"),
    "llama4": Entry("llama4", "Llama4TextMoe", "Llama4TextConfig"),
    "deepseek_v3": Entry("deepseek_v3", "DeepseekV3MoE", "DeepseekV3Config"),
    "deepseek_v32": Entry("deepseek_v32", "DeepseekV32MoE", "DeepseekV32Config"),
    "glm4_moe": Entry("glm4_moe", "Glm4MoeMoE", "Glm4MoeConfig"),
    "glm4_moe_lite": Entry("glm4_moe_lite", "Glm4MoeLiteMoE", "Glm4MoeLiteConfig"),
    "glm4v_moe": Entry("glm4v_moe", "Glm4vMoeTextMoE", "Glm4vMoeTextConfig"),
    "glm_moe_dsa": Entry("glm_moe_dsa", "GlmMoeDsaMoE", "GlmMoeDsaConfig"),
    "dots1": Entry("dots1", "Dots1MoE", "Dots1Config"),
    "kimi_linear": Entry("kimi_linear", "KimiLinearMoE", "KimiLinearConfig", {"num_expert_group": 1, "topk_group": 1}),
    "bailing_hybrid": Entry(
        "bailing_hybrid", "BailingHybridMoE", "BailingHybridConfig", {"n_group": 1, "topk_group": 1}
    ),
    "solar_open": Entry("solar_open", "SolarOpenMoE", "SolarOpenConfig"),
    "exaone_moe": Entry("exaone_moe", "ExaoneMoeSparseMoEBlock", "ExaoneMoeConfig"),
    "axk2": Entry("axk2", "AXK2MoE", "AXK2Config"),
    "glm5_next": Entry("glm5_next", "Glm5NextTextMoE", "Glm5NextTextConfig"),
    "hy_v4": Entry("hy_v4", "HYV4MoE", "HYV4Config"),
    "axk1": Entry("axk1", "AXK1MoE", "AXK1Config"),
    "beam": Entry("beam", "BeamMoE", "BeamConfig"),
    "mimo_v2_flash": Entry("mimo_v2_flash", "MiMoV2FlashMoE", "MiMoV2FlashConfig"),
    "nemotron_h": Entry("nemotron_h", "NemotronHMoE", "NemotronHConfig"),
    "hy_v3": Entry("hy_v3", "HYV3MoE", "HYV3Config"),
    "minimax_m2": Entry("minimax_m2", "MiniMaxM2SparseMoeBlock", "MiniMaxM2Config"),
    "minimax_m3_vl": Entry("minimax_m3_vl", "MiniMaxM3VLSparseMoeBlock", "MiniMaxM3VLTextConfig"),
    "step3p7": Entry("step3p7", "Step3p7SparseMoeBlock", "Step3p7TextConfig"),
    "lfm2_moe": Entry("lfm2_moe", "Lfm2MoeSparseMoeBlock", "Lfm2MoeConfig"),
    "afmoe": Entry("afmoe", "AfmoeSparseMoeBlock", "AfmoeConfig"),
    "laguna": Entry("laguna", "LagunaSparseMoeBlock", "LagunaConfig"),
    "flint": Entry("flint", "FlintSparseMoeBlock", "FlintConfig"),
    "kolibri1": Entry("kolibri1", "Kolibri1SparseMoeBlock", "Kolibri1Config"),
    "muse_spark": Entry("muse_spark", "MuseSparkMoE", "MuseSparkTextConfig"),
    "inkling": Entry("inkling", "InklingMoE", "InklingTextConfig"),
    "inkling2": Entry("inkling2", "Inkling2SparseMoeBlock", "Inkling2TextConfig"),
    "switch_transformers": Entry("switch_transformers", "SwitchTransformersSparseMLP", "SwitchTransformersConfig"),
    "doge": Entry("doge", "DogeCDMoE", "DogeConfig"),
    "gemma4": Entry(
        "gemma4",
        "Gemma4TextDecoderLayer",
        "Gemma4TextConfig",
        {"enable_moe_block": True, "hidden_size_per_layer_input": 0},
        call=_without_attention,
    ),
    "diffusion_gemma": Entry(
        "diffusion_gemma", "DiffusionGemmaEncoderTextLayer", "DiffusionGemmaTextConfig", {}, call=_without_attention
    ),
    "deepseek_v4": Entry(
        "deepseek_v4", "DeepseekV4SparseMoeBlock", "DeepseekV4Config", {"mlp_layer_types": ["hash_moe", "moe"]}, layer=1
    ),
    "deepseek_v4 by token": Entry(
        "deepseek_v4",
        "DeepseekV4SparseMoeBlock",
        "DeepseekV4Config",
        {"mlp_layer_types": ["hash_moe", "moe"]},
        call=_by_token,
    ),
    "ernie4_5_vl_moe": Entry(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoeMoeBlock",
        "Ernie4_5_VLMoeTextConfig",
        {"moe_intermediate_size": [24, 16]},
        call=_some_of_vision,
    ),
    "zaya": Entry("zaya", "ZayaSparseMoeBlock", "ZayaConfig", {"num_experts_per_tok": 1}),
    "granitemoehybrid": Entry(
        "granitemoehybrid", "GraniteMoeHybridMoE", "GraniteMoeHybridConfig", {"mamba_n_heads": 4, "mamba_d_head": 20}
    ),
    "qwen3_omni_moe_talker": Entry(
        "qwen3_omni_moe",
        "Qwen3OmniMoeTalkerTextSparseMoeBlock",
        "Qwen3OmniMoeTalkerTextConfig",
        {"shared_expert_intermediate_size": 33},
    ),
    "dots3_note_text": Entry("dots3_note", "Dots3NoteTextMoE", "Dots3NoteTextConfig"),
    "dots3_note_vision": Entry(
        "dots3_note",
        "Dots3NoteVisionMoE",
        "Dots3NoteVisionConfig",
        {"num_hidden_layers": None, "num_local_experts": None, "adapter_in_dim": HIDDEN},
        layer=25,
    ),
    "nllb_moe": Entry("nllb_moe", "NllbMoeSparseMLP", "NllbMoeConfig", arguments={"ffn_dim": 24}),
    "vitpose_backbone": Entry(
        "vitpose_backbone", "VitPoseBackboneMoeMLP", "VitPoseBackboneConfig", {"part_features": 8}
    ),
}

_GROUPS = {"n_group": 3, "topk_group": 2}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *(
        (name, changes)
        for name in ("deepseek_v3", "glm4_moe", "dots1", "bailing_hybrid", "axk2", "axk1", "beam", "mimo_v2_flash")
        for changes in (_GROUPS, {**_GROUPS, "norm_topk_prob": False}, {"norm_topk_prob": False})
    ),
    ("kimi_linear", {"num_expert_group": 2, "topk_group": 1}),
    ("axk2", {"n_group": None, "topk_group": None}),
    *(
        (name, {**_GROUPS, "topk_method": "group_limited_greedy"})
        for name in ("deepseek_v2", "deepseek_ocr2", "unlimited_ocr")
    ),
    ("cohere2_moe", {"expert_selection_fn": "sigmoid"}),
    ("cohere2_moe", {"expert_selection_fn": "sigmoid", "norm_topk_prob": False}),
    ("lfm2_moe", {"use_expert_bias": False}),
    ("lfm2_moe", {"norm_topk_prob": False}),
    ("kolibri1", {"norm_topk_prob": False}),
    ("flint", {"norm_topk_prob": False}),
    ("afmoe", {"route_scale": 2.5}),
    ("step3p7", {"swiglu_limits": [0.5, 0.5], "swiglu_limits_shared": [0.3, 0.3], "share_expert_dim": 33}),
    *(("mistral4", {**changes, "norm_topk_prob": norm}) for changes in ({}, _GROUPS) for norm in (False, True)),
    ("mistral_large4", _GROUPS),
    ("ernie4_5_moe", {"moe_num_shared_experts": 0}),
    ("deepseek_v4", {"scoring_func": "sigmoid"}),
    ("inkling2", {"mlp_gate_softcap": 0.5, "mlp_up_softcap": 0.3}),
    ("inkling2", {"scoring_func": "sqrtsoftplus"}),
]
"""Routers that the accelerator runs in other settings: entries and changes of their configuration."""

REFUSED_ENTRIES = {
    "nllb_moe": "router.choice",
    "doge": "router.keys",
    "vitpose_backbone": "router: expected one that sees the token",
    "muse_spark": "expert.post_norm: expected none, got one in MuseSparkExperts",
}
"""Entries that do not run, and what errors say of them."""

RUN = [name for name in ENTRIES if name not in REFUSED_ENTRIES]
"""Names of the entries whose experts run."""


class Model(torch.nn.Module):
    """A model of one block."""

    def __init__(self, block: torch.nn.Module):
        super().__init__()
        self.block = block


def output(model: Model, name: str) -> torch.Tensor:
    x = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        result: Any = ENTRIES[name].call(model.block, x)
    return (result[0] if isinstance(result, tuple) else result).reshape(2, 5, HIDDEN)
