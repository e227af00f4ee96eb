"""Which devices and layers are accepted, and what is in device memory afterwards."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from host import driver
from host.driver import Device
from moe_hw.arch import Arch
from moe_hw.errors import DeviceError, ImageError
from moe_hw.layer import random_layer
from moe_hw.quantised import QuantisedLayer
from moe_hw.registers import LAYOUT_VERSION
from moe_hw.spec import LayerSpec, SharedSpec
from moe_hw.stored import open_image, write_image
from moe_hw.twins.layer import golden
from tests.host.fake import FakeTransport
from tests.host.support import ARCH, assert_equal, spec


@pytest.fixture
def device() -> Device:
    return Device(FakeTransport(ARCH))


@pytest.mark.parametrize(
    ("csr", "line"),
    [
        ("magic", "magic word to be 0x4d6f4548, got 0x2a; load a moe-hw bitstream"),
        ("version", f"layout version to be {LAYOUT_VERSION:#x}, got 0x2a"),
        ("config_hash_high", "configuration hash"),
        ("config_hash_low", "configuration hash"),
    ],
)
def test_another_device_is_refused(csr: str, line: str) -> None:
    transport = FakeTransport(ARCH)
    transport.csrs[csr] = 42
    with pytest.raises(DeviceError, match=line):
        Device(transport)


@pytest.mark.parametrize(
    ("layer_spec", "line"),
    [
        (spec(experts=17), "layer 0 has 17 experts, this accelerator at most 16; .* larger max_experts"),
        (spec(top_k=5), r"5 experts per token \(top-k\), this accelerator at most 4"),
        (spec(hidden=32 * 17), r"68 blocks .* \(2 x 17 hidden or 1 intermediate\), .* at most 64"),
        (spec(hidden=32, shared=SharedSpec(32 * 33, False)), r"66 blocks .* \(2 x 1 hidden or 33 intermediate\)"),
    ],
)
def test_layer_beyond_a_maximum_is_refused_before_loading(device: Device, layer_spec: LayerSpec, line: str) -> None:
    free = device.memory.free_bytes
    with pytest.raises(DeviceError, match=line):
        device.load(random_layer(layer_spec))
    assert device.memory.free_bytes == free


def test_logits_beyond_the_logit_memory_are_refused() -> None:
    arch = Arch(columns=4, max_experts=16, logit_words=2)
    with pytest.raises(DeviceError, match="3 words of 4 router logits per token, this accelerator at most 2"):
        Device(FakeTransport(arch)).load(random_layer(spec(experts=8, shared=SharedSpec(4, True))))


def test_sums_beyond_the_combine_buffer_are_refused() -> None:
    arch = Arch(columns=32, max_experts=16, combine_elements=64)
    with pytest.raises(DeviceError, match="96 sums per token, this accelerator at most 64"):
        Device(FakeTransport(arch)).load(random_layer(spec(hidden=65)))


def test_layer_beyond_device_memory_is_refused_and_frees_what_it_took() -> None:
    device = Device(FakeTransport(ARCH, memory_bytes=64 << 10))
    free = device.memory.free_bytes
    with pytest.raises(DeviceError, match=r"large needs [\d,]+ bytes, [\d,]+ of 65,536 are free"):
        device.load(random_layer(spec(experts=16, hidden=64, inter=64)), "int8", name="large")
    assert device.memory.free_bytes == free
    device.load(random_layer(spec()))


def test_layer_of_an_image_on_disk(tmp_path: Path) -> None:
    layer = random_layer(spec(shared=SharedSpec(40, True)))
    write_image(tmp_path / "image", [("first", QuantisedLayer(layer, "int8"))], ARCH)
    stored = open_image(tmp_path / "image").layers[0]
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(4))
    assert_equal(Device(FakeTransport(ARCH)).load(stored)(x), golden(layer, x, "int8"))
    other = Device(FakeTransport(dataclasses.replace(ARCH, columns=8)))
    with pytest.raises(DeviceError, match=r"the layer first was packed for .* pack it again"):
        other.load(stored, name="the layer first")


def test_damaged_image_is_refused_and_frees_what_it_took(tmp_path: Path, device: Device) -> None:
    write_image(tmp_path / "image", [("first", QuantisedLayer(random_layer(spec())))], ARCH)
    stored = open_image(tmp_path / "image").layers[0]
    file = tmp_path / "image" / "layer-0.bin"
    data = bytearray(file.read_bytes())
    data[-70] ^= 1
    file.write_bytes(data)
    with pytest.raises(ImageError, match="corrupt"):
        device.load(stored)
    assert len(device.memory._taken) == 2  # the ring, and the room for inputs and outputs


def test_memory_is_used_again_after_unload(device: Device) -> None:
    layers = [random_layer(spec(experts=experts), experts) for experts in (2, 5, 9)]
    handles = [device.load(layer) for layer in layers]
    free = device.memory.free_bytes
    rng = random.Random(3)
    for _ in range(10):
        at = rng.randrange(3)
        device.unload(handles[at])
        with pytest.raises(DeviceError, match="was unloaded"):
            handles[at](torch.ones(1, 33))
        with pytest.raises(DeviceError, match="is not on this device"):
            device.unload(handles[at])
        handles[at] = device.load(QuantisedLayer(layers[at]))
        assert device.memory.free_bytes == free
        for layer, handle in zip(layers, handles, strict=True):
            assert_equal(handle(torch.ones(1, 33)), golden(layer, torch.ones(1, 33)))


def test_closing_unloads_and_disconnects() -> None:
    transport = FakeTransport(ARCH)
    with Device(transport) as device:
        handle = device.load(random_layer(spec()))
    assert transport.closed
    with pytest.raises(DeviceError, match="was unloaded"):
        handle(torch.ones(1, 33))


def test_failed_write_frees_the_image(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    write: Callable[..., None] = device.transport.write
    device.load(random_layer(spec()))
    free = device.memory.free_bytes
    calls = iter(range(100))

    def failing(address: int, data: object) -> None:
        if next(calls) == 3:
            raise DeviceError("the cable was pulled")
        write(address, data)

    monkeypatch.setattr(device.transport, "write", failing)
    with pytest.raises(DeviceError, match="cable"):
        device.load(random_layer(spec()))
    assert device.memory.free_bytes == free


def test_device_that_is_refused_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = FakeTransport(ARCH)
    transport.csrs["magic"] = 0
    monkeypatch.setattr(driver, "open_transport", lambda url, progress: transport)
    with pytest.raises(DeviceError, match="magic word"):
        driver.open_device("fake:1")
    assert transport.closed
