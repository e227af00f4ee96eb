"""Checkpoints whose linear layers another library has packed, GPTQ and AWQ: their weights as floats.

The layouts are those that AutoGPTQ 0.7 (``QuantLinear.pack``) and AutoAWQ 0.2 (``WQLinear_GEMM``) write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from moe_hw.errors import ModelError

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring columns is in nibble ``i`` of a word of AWQ."""

PARTS = ("qweight", "qzeros", "scales")


def is_packed(config: Any) -> bool:
    """Whether a configuration says that its checkpoint's weights are packed in a way that this module reads."""
    quantization = getattr(config, "quantization_config", None)
    return quantization is not None and quantization.get("quant_method") in ("gptq", "awq")


def unpacked(stored: Mapping[str, torch.Tensor], quantization: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint, with the weights of packed layers as float32 ``[out, in]``.

    Parameters:
        stored: its tensors, or those of some of its layers.
        quantization: ``quantization_config`` of its configuration.

    Raises:
        ModelError: a part of a packed layer is missing or has another shape, or a layout is not known.
    """
    unpack = _layout(quantization)
    tensors = dict(stored)
    packed = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    for layer in packed:
        parts = {part: tensors.pop(f"{layer}.{part}", None) for part in (*PARTS, "g_idx")}
        for part in PARTS:
            if parts[part] is None:
                raise ModelError(f"{layer}.{part}: expected a tensor beside {layer}.qweight, got none; copy it again")
        tensors[f"{layer}.weight"] = unpack(layer, parts)
    return tensors


def _layout(quantization: Mapping[str, Any]) -> Callable[[str, dict[str, Any]], torch.Tensor]:
    """The function that unpacks a layer.

    Raises:
        ModelError: a width or a variant that is not known.
    """
    method, bits = quantization["quant_method"], quantization.get("bits")
    if method == "awq":
        version = str(quantization.get("version", "gemm")).lower()
        if bits != 4 or version != "gemm":
            raise ModelError(f"awq: expected 4 bits in the layout gemm, got {bits} bits in {version}")
        return _awq
    if bits not in (2, 4, 8):
        raise ModelError(f"gptq: expected 2, 4 or 8 bits, got {bits}")
    # Version 1 stores zero points less one.
    less = 0 if quantization.get("checkpoint_format") == "gptq_v2" else 1
    return lambda layer, parts: _gptq(layer, parts, int(bits), less)


def _gptq(layer: str, parts: dict[str, Any], bits: int, less: int) -> torch.Tensor:
    codes = _fields(parts["qweight"], bits).transpose(1, 2).flatten(0, 1)  # [in, out]
    zeros = _fields(parts["qzeros"], bits).flatten(1) + less
    groups = parts["g_idx"]
    if groups is None:
        groups = _groups(layer, len(codes), len(parts["scales"]))
    return _weights(layer, codes, zeros, parts["scales"], groups.long())


def _awq(layer: str, parts: dict[str, Any]) -> torch.Tensor:
    back = torch.tensor(AWQ_ORDER).argsort()
    codes = _fields(parts["qweight"], 4)[..., back].flatten(1)
    zeros = _fields(parts["qzeros"], 4)[..., back].flatten(1)
    return _weights(layer, codes, zeros, parts["scales"], _groups(layer, len(codes), len(parts["scales"])))


def _fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The unsigned numbers of ``bits`` bits in each 32-bit word, the lowest first, in a new last dimension."""
    return (words[..., None] >> torch.arange(0, 32, bits, dtype=torch.int32)) & (1 << bits) - 1


def _groups(layer: str, inputs: int, groups: int) -> torch.Tensor:
    """The group of each input."""
    if inputs % groups:
        raise ModelError(f"{layer}: expected groups of equal size, got {groups} for {inputs} inputs; copy it again")
    return torch.arange(inputs) // (inputs // groups)


def _weights(
    layer: str, codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, groups: torch.Tensor
) -> torch.Tensor:
    """``(code - zero point) * scale`` of ``[in, out]``, transposed."""
    if zeros.shape != scales.shape or scales.shape[1] != codes.shape[1] or len(groups) != len(codes):
        shapes = f"codes {list(codes.shape)}, zero points {list(zeros.shape)}, scales {list(scales.shape)}"
        raise ModelError(f"{layer}: expected parts of matching shapes, got {shapes}; copy it again")
    return ((codes - zeros[groups]).float() * scales.float()[groups]).T.contiguous()
