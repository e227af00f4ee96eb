"""Checkpoints that were published in other libraries' formats: what they hold is what reaches the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from moe_hw import cli
from moe_hw.cli.checkpoint import load_model
from moe_hw.quantised import QuantisedLayer
from moe_hw.sites import moe_sites
from moe_hw.stored import open_image
from tests.host.models import config_of


def saved(path: Path, family: str, **sizes: Any) -> dict[str, torch.Tensor]:
    """Writes a bfloat16 checkpoint of a tiny model; returns its tensors."""
    torch.manual_seed(0)
    config = config_of(family)
    for name, value in sizes.items():
        setattr(config, name, value)
    transformers.AutoModelForCausalLM.from_config(config).eval().bfloat16().save_pretrained(path)
    return load_file(path / "model.safetensors")


def rewrite(path: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, Any]) -> None:
    """The checkpoint with other tensors, and what its configuration says of them."""
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


def mxfp4_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Random blocks and scales in the form of gpt-oss; returns the values of the experts' matrices, [E, in, out]."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors, values = {}, {}
    for name, weight in saved(path, "gpt_oss", hidden_size=64, intermediate_size=32, head_dim=32).items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = weight
            continue
        experts, width, rows = weight.shape
        blocks = torch.randint(0, 256, (experts, rows, width // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 128, (experts, rows, width // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        values[name] = convert_moe_packed_tensors(blocks, scales).float()
    rest = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    rewrite(path, tensors, {"quant_method": "mxfp4", "modules_to_not_convert": rest})
    return values


def test_mxfp4_reaches_the_device_without_a_loss(tmp_path: Path) -> None:
    values = mxfp4_checkpoint(tmp_path)
    for number, site in enumerate(moe_sites(load_model(tmp_path))):
        layer = QuantisedLayer(site.layer(), "mxfp4")
        name = f"model.layers.{number}.mlp.experts"
        for index in range(4):
            gate_up, down = layer.expert(index)
            both = values[f"{name}.gate_up_proj"][index].T.numpy()
            assert np.array_equal(gate_up.dequantise()[:64, :64], both)  # rows of gate and up in turn, here and there
            assert np.array_equal(down.dequantise()[:64, :32], values[f"{name}.down_proj"][index].T.numpy())


def test_an_mxfp4_checkpoint_is_packed(tmp_path: Path) -> None:
    mxfp4_checkpoint(tmp_path / "model")
    out = tmp_path / "image"
    arguments = ["pack", "--jobs", "1", "--model", str(tmp_path / "model"), "--format", "mxfp4"]
    assert cli.main([*arguments, "-o", str(out)]) == 0
    assert [layer.weight_format for layer in open_image(out).layers] == ["mxfp4"] * 2


def test_fp8_with_block_scales_is_read(tmp_path: Path) -> None:
    """e4m3 with a scale for each 128 x 128 weights, in the form of DeepSeek-V3: then int8 has 35 dB and more."""
    tensors, values = {}, {}
    for name, weight in saved(tmp_path, "deepseek_v3", hidden_size=256, moe_intermediate_size=128).items():
        if ".experts." not in name:
            tensors[name] = weight
            continue
        rows, columns = weight.shape
        tiles = weight.float().view(rows // 128, 128, columns // 128, 128)
        scale = tiles.abs().amax((1, 3)) / 448
        codes = (tiles / scale[:, None, :, None]).view(rows, columns).to(torch.float8_e4m3fn)
        tensors |= {name: codes, f"{name}_scale_inv": scale}
        values[name] = codes.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    rest = ["lm_head", "model.embed_tokens", "self_attn", "gate", "shared_experts"]
    rewrite(
        tmp_path,
        tensors,
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": rest,
        },
    )
    (site, _) = moe_sites(load_model(tmp_path))
    layer = site.layer()
    for part in ("gate", "up", "down"):
        value = values[f"model.layers.0.mlp.experts.3.{part}_proj.weight"]
        assert torch.equal(getattr(layer.expert(3), part), value)
    coded = QuantisedLayer(layer, "int8").expert(3).down.dequantise()
    exact = values["model.layers.0.mlp.experts.3.down_proj.weight"].double().numpy()
    assert 10 * np.log10(np.square(exact).sum() / np.square(coded - exact).sum()) > 35


@pytest.mark.parametrize("method", ["mxfp4", "fp8"])
def test_a_published_format_with_missing_tensors_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    tensors = saved(tmp_path / "model", "gpt_oss", hidden_size=64, intermediate_size=32, head_dim=32)
    kept = {name: weight for name, weight in tensors.items() if "experts" not in name}
    rewrite(tmp_path / "model", kept, {"quant_method": method})
    assert cli.main(["pack", "--jobs", "1", "--model", str(tmp_path / "model"), "-o", str(tmp_path / "image")]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "experts" in error
