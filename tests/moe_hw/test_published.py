"""Checkpoints as AutoGPTQ and AutoAWQ pack them: the weights are theirs, and so are the codes on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_hw import cli
from moe_hw.cli.checkpoint import load_model
from moe_hw.cli.stream import LayerStream
from moe_hw.formats import FORMATS, fraction_bits, largest_magnitude, largest_scale_exponent, quantise
from moe_hw.published import AWQ_ORDER
from moe_hw.quantised import QuantisedLayer
from moe_hw.sites import moe_sites
from tests.moe_hw.test_checkpoints import rewrite, saved

GROUP = 32


def words(fields: np.ndarray) -> torch.Tensor:
    """32-bit words of eight nibbles each, ``[..., 8]`` with the lowest first."""
    return torch.from_numpy(
        (fields.astype(np.uint64) << np.arange(0, 32, 4, dtype=np.uint64)).sum(-1).astype(np.uint32).view(np.int32)
    )


def quantised(weight: torch.Tensor, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [in, out], zero points and float16 scales [groups, out] of a weight [out, in], by rounding.

    Input ``i`` belongs to group ``order[i]``.
    """
    w = weight.float().numpy().T
    groups = order.max() + 1
    scales, zeros = np.empty((groups, w.shape[1]), np.float16), np.empty((groups, w.shape[1]), np.int64)
    codes = np.empty(w.shape, np.int64)
    for group in range(groups):
        part = w[order == group]
        low, high = np.minimum(part.min(0), 0), np.maximum(part.max(0), 0)
        scales[group] = (high - low) / 15
        zeros[group] = np.clip(np.rint(-low / scales[group].astype(float)), 1, 15)
        codes[order == group] = np.clip(np.rint(part / scales[group].astype(float)) + zeros[group], 0, 15)
    return codes, zeros, scales


def gptq(weight: torch.Tensor, act_order: bool) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    order = np.arange(weight.shape[1]) // GROUP
    if act_order:
        order = np.random.default_rng(0).permutation(order)
    codes, zeros, scales = quantised(weight, order)
    value = (codes - zeros[order]) * scales[order].astype(np.float64)
    parts = {
        "qweight": words(codes.reshape(-1, 8, codes.shape[1]).transpose(0, 2, 1)),
        "qzeros": words((zeros - 1).reshape(len(zeros), -1, 8)),
        "scales": torch.from_numpy(scales),
        "g_idx": torch.from_numpy(order.astype(np.int32)),
    }
    return parts, value.T


def awq(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    order = np.arange(weight.shape[1]) // GROUP
    codes, zeros, scales = quantised(weight, order)
    value = (codes - zeros[order]) * scales[order].astype(np.float64)
    packed = list(AWQ_ORDER)
    parts = {
        "qweight": words(codes.reshape(len(codes), -1, 8)[..., packed]),
        "qzeros": words(zeros.reshape(len(zeros), -1, 8)[..., packed]),
        "scales": torch.from_numpy(scales),
    }
    return parts, value.T


def checkpoint(path: Path, method: str, act_order: bool = False, plain: str = "none") -> dict[str, np.ndarray]:
    """A checkpoint whose experts and attentions are packed; returns the values of their matrices, [out, in].

    Layers whose names begin with ``plain`` are not packed; if there are such, all floats have the same 16 bits.
    """
    tensors: dict[str, torch.Tensor] = {}
    values = {}
    for name, weight in saved(path, "qwen3_moe", hidden_size=64, moe_intermediate_size=96, head_dim=32).items():
        if not name.startswith(plain) and (".experts." in name or ("self_attn" in name and "proj" in name)):
            layer = name.removesuffix(".weight")
            parts, values[name] = gptq(weight, act_order) if method == "gptq" else awq(weight)
            tensors |= {f"{layer}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        else:
            tensors[name] = weight
    if plain != "none":
        floats = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        tensors |= {name: tensors[name].bfloat16() for name in floats}
    rewrite(path, tensors, {"quant_method": method, "bits": 4, "group_size": GROUP, "version": "gemm"})
    return values


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_weights_and_codes_are_those_of_the_checkpoint(tmp_path: Path, method: str) -> None:
    values = checkpoint(tmp_path, method)
    model = load_model(tmp_path)
    name = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_allclose(model.get_parameter(name).detach().numpy(), values[name], rtol=1e-6)
    site = moe_sites(model)[1]
    layer = QuantisedLayer(site.layer(), "int5", scales="grid")
    for index in range(6):
        gate_up, down = layer.expert(index)
        for found, part in ((gate_up.dequantise()[0:192:2], "gate"), (down.dequantise(), "down")):
            value = values[f"model.layers.1.mlp.experts.{index}.{part}_proj.weight"]
            found = found[: value.shape[0], : value.shape[1]].reshape(-1, 32)
            value = value.reshape(-1, 32)
            # Each block is the checkpoint's times one number, that of the rounded scale.
            ratio = (found * value).sum(1) / (value * value).sum(1)
            np.testing.assert_allclose(found, value * ratio[:, None], rtol=1e-9, atol=1e-12)
            assert (np.abs(ratio - 1) <= 1 / 64).all()
    assert layer.off_grid == dict.fromkeys(range(6), 0)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_layers_are_read_one_at_a_time(tmp_path: Path, method: str) -> None:
    """One of them not packed; the weights of the other keep more bits than any tensor of theirs has."""
    checkpoint(tmp_path, method, plain="model.layers.0.")
    stream = LayerStream(tmp_path)
    for number, site in enumerate(moe_sites(load_model(tmp_path))):
        layer, whole = stream.layer(number), site.layer()
        for index in range(6):
            for found, expected in zip(layer.expert(index)[:3], whole.expert(index)[:3], strict=True):
                assert found is not None and expected is not None and torch.equal(found, expected)


def test_act_order_is_rounded_anew_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path / "model", "gptq", act_order=True)
    arguments = ["pack", "--jobs", "1", "--model", str(tmp_path / "model"), "--format", "int5", "--scales", "grid"]
    assert cli.main([*arguments, "-o", str(tmp_path / "image")]) == 0
    assert (
        "blocks of 32 weights are no integers times a step of theirs, and were rounded anew" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "gptq: expected 2, 4 or 8 bits, got 3"),
        ({"quant_method": "awq", "version": "gemv"}, "awq: expected 4 bits in the layout gemm, got 4 bits in gemv"),
    ],
)
def test_a_layout_that_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    import json

    checkpoint(tmp_path, "gptq")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["pack", "--jobs", "1", "--model", str(tmp_path), "-o", str(tmp_path / "image")]) == 4
    assert message in capsys.readouterr().err


def test_a_missing_part_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint(tmp_path, "gptq")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.experts.2.up_proj.scales"]
    save_file(tensors, file, {"format": "pt"})
    assert cli.main(["pack", "--jobs", "1", "--model", str(tmp_path), "-o", str(tmp_path / "image")]) == 4
    assert "model.layers.0.mlp.experts.2.up_proj.scales: expected a tensor beside" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["int5", "int8"])
@pytest.mark.parametrize("most", [1, 2, 3, 7, 15])
def test_integers_are_kept_whatever_their_range(most: int, name: str) -> None:
    """With a multiple that the scale is near to: the more codes, the nearer."""
    form = FORMATS[name]
    random = np.random.default_rng(most)
    integers = random.integers(-most, most + 1, (50, 32))
    integers[:, 0] = most
    weight = (integers * random.uniform(0.01, 1, (50, 1))).astype(np.float16)
    matrix = torch.from_numpy(weight).float()
    exponent = largest_scale_exponent(largest_magnitude("matrix", matrix), form) + 1
    result = quantise(matrix, form, exponent, scales="grid")
    multiple = result.codes[:, :1] // integers[:, :1]
    assert np.array_equal(result.codes, integers * multiple) and result.off_grid == 0
    # Half a step of the scale, and the weights' own rounding to 11 bits.
    nearest = 2.0 ** -(fraction_bits(result.f) + 1) / (1 if name == "int5" else 1.6) + 2.0**-10
    assert (np.abs(result.dequantise() - weight) <= np.abs(weight) * nearest).all()
