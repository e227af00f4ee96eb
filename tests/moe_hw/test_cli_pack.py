"""``moe-hw pack``: one layer in memory at a time, in several processes, and again after an interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from boards import load_board
from moe_hw import cli, stored
from moe_hw.cli.checkpoint import load_model
from moe_hw.cli.stream import LayerStream
from moe_hw.errors import ModelError
from moe_hw.fit import arch_of
from moe_hw.quantised import QuantisedLayer
from moe_hw.sites import moe_sites
from moe_hw.stored import open_image, write_image
from tests.host.models import CONFIGS, save_checkpoint

ARCH = arch_of(load_board("ulx3s-85f"))


def pack(model: Path, out: Path, *more: str) -> int:
    return cli.main(["pack", "--model", str(model), "-o", str(out), *more])


def bytes_of(image: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in image.iterdir()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("family", CONFIGS)
def test_the_image_is_that_of_the_whole_model(family: str, tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model", family)
    assert pack(model, tmp_path / "image", "--jobs", "1") == 0
    sites = moe_sites(load_model(model))
    write_image(tmp_path / "whole", ((site.name, QuantisedLayer(site.layer())) for site in sites), ARCH)
    assert bytes_of(tmp_path / "image") == bytes_of(tmp_path / "whole")


def test_processes_write_the_same(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for jobs in ("1", "2"):
        assert pack(checkpoint, tmp_path / jobs, "--format", "int8", "--jobs", jobs) == 0
        captured = capsys.readouterr()
        assert "2 MoE layers in int8" in captured.out and captured.err == ""
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2")
    image = open_image(tmp_path / "2")
    assert [layer.name for layer in image.layers] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert image.arch == ARCH


def test_one_layer_is_in_memory_at_a_time(checkpoint: Path) -> None:
    stream = LayerStream(checkpoint)
    assert all(weight.is_meta for site in stream.sites for weight in site.module.parameters())
    for number, site in enumerate(moe_sites(load_model(checkpoint))):
        layer = stream.layer(number)
        assert torch.equal(layer.expert(3).down, site.layer().expert(3).down)
    assert all(weight.is_meta for site in stream.sites for weight in site.module.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    """16 bits in the checkpoint are 16 bits in memory."""
    file = save_checkpoint(tmp_path) / "model.safetensors"
    save_file({name: weight.to(dtype) for name, weight in load_file(file).items()}, file, {"format": "pt"})
    stream = LayerStream(tmp_path)
    expected = load_model(tmp_path).get_submodule(stream.sites[1].name).experts.gate_up_proj
    read = stream.layer(1)._expert(2)
    assert read.up.dtype == dtype
    assert torch.equal(torch.cat((read.gate, read.up)).float(), expected[2])


def test_an_interrupted_run_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(checkpoint, tmp_path / "whole", "--jobs", "1") == 0
    out = tmp_path / "image"
    write = stored.write_layer
    written: list[int] = []

    def interrupt(path: Any, number: int, *arguments: Any) -> None:
        if number == 1 and len(written) == 1:
            (out / "layer-1.bin").write_bytes(b"half of it")
            raise KeyboardInterrupt
        written.append(number)
        write(path, number, *arguments)

    monkeypatch.setattr(stored, "write_layer", interrupt)
    assert pack(checkpoint, out, "--jobs", "1") == 130
    assert pack(checkpoint, out, "--jobs", "1", "--format", "int8") == 0  # another image
    assert written == [0, 0, 1] and "were there" not in capsys.readouterr().out

    written.clear()
    assert pack(checkpoint, tmp_path / "other", "--jobs", "1") == 130
    written.append(0)
    assert pack(checkpoint, tmp_path / "other", "--jobs", "1") == 0
    assert written == [0, 0, 1] and "1 of them were there from a run before" in capsys.readouterr().out
    assert bytes_of(tmp_path / "other") == bytes_of(tmp_path / "whole")


def test_a_record_that_is_damaged_is_not_trusted(checkpoint: Path, tmp_path: Path) -> None:
    source = "weights"
    layer = QuantisedLayer(LayerStream(checkpoint).layer(0))
    for damage in (
        lambda: (tmp_path / "layer-0.json").write_text("{"),
        lambda: (tmp_path / "layer-0.json").write_text("[]"),
        lambda: (tmp_path / "layer-0.bin").write_bytes(b"short"),
        lambda: (tmp_path / "layer-0.bin").unlink(),
    ):
        assert stored.begin_image(tmp_path, ARCH, source) == set()
        stored.write_layer(tmp_path, 0, "layer", layer, ARCH, source)
        assert stored.begin_image(tmp_path, ARCH, source) == {0}
        damage()
    assert stored.begin_image(tmp_path, ARCH, source) == set()
    stored.write_layer(tmp_path, 0, "layer", layer, ARCH, source)
    assert stored.begin_image(tmp_path, ARCH, "others") == set() and not list(tmp_path.iterdir())


def test_bad_arguments(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(checkpoint, tmp_path / "image", "--format", "fp4") == 2
    assert "expected int2 or" in capsys.readouterr().err
    (tmp_path / "thesis.tex").touch()
    assert pack(checkpoint, tmp_path) == 2
    assert "expected an image or an empty directory, got thesis.tex" in capsys.readouterr().err


def test_missing_weights_of_a_layer_are_named(tmp_path: Path) -> None:
    file = save_checkpoint(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.gate.weight"]
    save_file(tensors, file, {"format": "pt"})
    stream = LayerStream(tmp_path)
    assert np.isfinite(stream.layer(0).router_weight().numpy()).all()
    with pytest.raises(
        ModelError, match=r"expected 1 more weights such as model\.layers\.1\.mlp\.gate\.weight, got none"
    ):
        stream.layer(1)


def test_a_model_with_images_has_a_language_model(tmp_path: Path) -> None:
    text = {
        "vocab_size": 64, "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 20,
        "num_key_value_heads": 1, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 33, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 40}
    config = transformers.Qwen3_5MoeConfig(text_config=text, vision_config=vision)
    transformers.Qwen3_5MoeForConditionalGeneration(config).save_pretrained(tmp_path)
    block = load_model(tmp_path).model.layers[1].mlp
    assert torch.equal(LayerStream(tmp_path).layer(1).router_weight(), block.gate.weight)


def test_another_configuration_is_another_image(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "image"
    shutil.copytree(checkpoint, model)
    write = stored.write_layer

    def interrupt(path: Any, number: int, *arguments: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(path, number, *arguments)

    with monkeypatch.context() as context:
        context.setattr(stored, "write_layer", interrupt)
        assert pack(model, out, "--jobs", "1") == 130
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 1}))
    assert pack(model, out, "--jobs", "1") == 0
    assert "were there" not in capsys.readouterr().out
    assert [layer.spec.router.top_k for layer in open_image(out).layers] == [1, 1]
