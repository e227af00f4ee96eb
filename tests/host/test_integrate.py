"""Models of the families with their MoE blocks on a fake device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from host import modules
from host.driver import Device
from host.integrate import accelerate
from moe_hw.arch import Arch
from moe_hw.errors import DeviceError, ModelError, UsageError
from moe_hw.twins.layer import golden
from tests.host.fake import FakeTransport
from tests.host.models import CONFIGS, tiny_model

ARCH = Arch(columns=4, max_tokens=4, max_experts=16, max_top_k=4, logit_words=64)
IDS = torch.tensor([[5, 17, 2, 60, 33]])


@pytest.fixture
def device() -> Device:
    return Device(FakeTransport(ARCH))


@pytest.mark.parametrize("family", CONFIGS)
def test_generation_is_bit_exact_and_close_to_the_float_model(device: Device, family: str) -> None:
    model = tiny_model(family)
    before = model(IDS).logits
    acceleration = accelerate(model, device, "int8", check=True)
    logits = model(IDS).logits
    assert logits.dtype == torch.float32
    assert 0 < (logits - before).abs().max() < 0.02 * before.abs().max()
    out = model.generate(IDS, max_new_tokens=4, do_sample=False)
    assert out.shape[1] == 9
    assert acceleration.failed == 0 and acceleration.equal == 2 * 5
    for layer in acceleration.layers:
        assert layer.calls == layer.equal == 5
        assert layer.report.tokens == 5 + 5 + 3
    assert acceleration.report.tokens == 2 * 13


def test_blocks_keep_shape_type_and_place(device: Device) -> None:
    model = tiny_model("qwen3_moe").bfloat16()
    accelerate(model, device)
    x = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = model.model.layers[0].mlp(x)
    assert out.shape == x.shape and out.dtype == torch.bfloat16
    assert torch.equal(model.model.layers[0].mlp(hidden_states=x), out)
    assert model(IDS.expand(3, 5)).logits.shape == (3, 5, 61)


def test_wrong_result_is_counted(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen3_moe")
    acceleration = accelerate(model, device, check=True)

    def other(*args: Any, **kwargs: Any) -> Any:
        result = golden(*args, **kwargs)
        result.output[0, 0] = torch.nextafter(result.output[0, 0], torch.tensor(9.0))
        return result

    model(IDS)
    monkeypatch.setattr(modules, "golden", other)
    model(IDS)
    assert (acceleration.equal, acceleration.failed) == (2, 2)


def test_restore_brings_the_model_and_the_memory_back(device: Device) -> None:
    model = tiny_model("qwen2_moe")
    names, before, free = list(model.state_dict()), model(IDS).logits, device.memory.free_bytes
    acceleration = accelerate(model, device)
    assert not torch.equal(model(IDS).logits, before)
    acceleration.restore()
    acceleration.restore()
    assert list(model.state_dict()) == names
    assert torch.equal(model(IDS).logits, before)
    assert model(IDS, output_router_logits=True).router_logits is not None
    # The inputs and outputs keep their room.
    assert device.memory.free_bytes == free - device._workspace_bytes
    assert acceleration.report.commands > 0
    accelerate(model, device).restore()


def test_restore_after_the_device_was_closed() -> None:
    model = tiny_model("mixtral")
    before = model(IDS).logits
    with Device(FakeTransport(ARCH)) as device:
        acceleration = accelerate(model, device)
    acceleration.restore()
    assert torch.equal(model(IDS).logits, before)


def test_all_or_nothing() -> None:
    model = tiny_model("qwen3_moe")
    modules = dict(model.named_modules())
    one_layer = Device(FakeTransport(ARCH))
    accelerate(tiny_model("qwen3_moe"), one_layer)
    taken = one_layer.memory.size - one_layer.memory.free_bytes
    device = Device(FakeTransport(ARCH, memory_bytes=taken - 64))
    with pytest.raises(DeviceError, match=r"model.layers.1.mlp .* bytes"):
        accelerate(model, device)
    assert dict(model.named_modules()) == modules
    assert not model._forward_pre_hooks
    assert device._handles == [] and len(device.memory._taken) == 2


def test_router_logits_are_refused(device: Device) -> None:
    model = tiny_model("qwen3_moe")
    accelerate(model, device)
    model(IDS, output_router_logits=False)
    with pytest.raises(UsageError, match="expected output_router_logits=False"):
        model(IDS, output_router_logits=True)
    other = tiny_model("qwen3_moe")
    other.config.output_router_logits = True
    with pytest.raises(UsageError, match="expected output_router_logits=False"):
        accelerate(other, device)


def test_training_is_refused(device: Device) -> None:
    model = tiny_model("qwen3_moe")
    accelerate(model, device)
    with pytest.raises(UsageError, match=r"model.layers.0.mlp: .* call model.eval\(\)"):
        model.train()(IDS)


def test_accelerating_twice_is_refused(device: Device) -> None:
    model = tiny_model("qwen3_moe")
    accelerate(model, device)
    with pytest.raises(UsageError, match="accelerated already"):
        accelerate(model, device)


def test_dense_model_and_unknown_format_are_refused(device: Device) -> None:
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=40, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(ModelError, match="not a MoE model"):
        accelerate(transformers.AutoModelForCausalLM.from_config(config), device)
    with pytest.raises(UsageError, match="expected int2 or .* or mxfp4, got 'int7'"):
        accelerate(tiny_model("qwen3_moe"), device, "int7")


def test_progress_names_every_layer(device: Device) -> None:
    told: list[tuple[int, int, str]] = []
    accelerate(tiny_model("qwen3_moe"), device, progress=lambda *step: told.append(step))
    assert told == [(0, 2, "model.layers.0.mlp"), (1, 2, "model.layers.1.mlp"), (2, 2, "all layers are loaded")]
