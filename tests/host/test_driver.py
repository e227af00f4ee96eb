"""The driver against a fake device that reads commands, descriptors and weights back from memory."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host.driver import Device
from host.ring import RING_COMMANDS
from moe_hw.arch import Arch
from moe_hw.errors import DeviceError, DeviceTimeout, ImageError, InputError
from moe_hw.image import open_image, write_image
from moe_hw.layer import random_layer
from moe_hw.quantised import QuantisedLayer
from moe_hw.registers import STATUS_TEXT, Status
from moe_hw.result import Result
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec
from moe_hw.twins.layer import golden
from tests.host.fake import FakeTransport

ARCH = Arch(
    columns=4, token_blocks=64, max_tokens=4, max_experts=16, max_top_k=4, logit_words=16, combine_elements=512
)


def spec(
    hidden: int = 33,
    inter: int = 17,
    experts: int = 5,
    top_k: int = 2,
    shared: SharedSpec | None = None,
    normalise: bool = True,
) -> LayerSpec:
    return LayerSpec(hidden, RouterSpec(experts, top_k, normalise=normalise), ExpertSpec(inter), shared)


def assert_equal(result: Result, expected: Result) -> None:
    assert torch.equal(result.output.reshape(expected.output.shape), expected.output)
    assert torch.equal(result.experts, expected.experts)
    assert torch.equal(result.weights, expected.weights)


@pytest.fixture
def device() -> Device:
    return Device(FakeTransport(ARCH))


def fake(device: Device) -> FakeTransport:
    assert isinstance(device.transport, FakeTransport)
    return device.transport


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.integers(1, 70),
    inter=st.integers(1, 70),
    experts=st.integers(2, 9),
    top_k=st.integers(1, 2),
    shared=st.sampled_from([None, SharedSpec(5, True), SharedSpec(40, False)]),
    normalise=st.booleans(),
    weight_format=st.sampled_from(["int4", "int8"]),
    columns=st.sampled_from([4, 8, 32]),
    tokens=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_any_layer_equals_the_golden_model(
    hidden: int,
    inter: int,
    experts: int,
    top_k: int,
    shared: SharedSpec | None,
    normalise: bool,
    weight_format: str,
    columns: int,
    tokens: int,
    seed: int,
) -> None:
    arch = Arch(columns=columns, token_blocks=64, max_tokens=4, max_experts=16, max_top_k=4)
    layer = random_layer(spec(hidden, inter, experts, top_k, shared, normalise), seed)
    x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed))
    with Device(FakeTransport(arch)) as device:
        result = device.load(layer, weight_format)(x)
    assert_equal(result, golden(layer, x, weight_format))


def test_shape_is_kept_and_any_float_type_is_taken(device: Device) -> None:
    layer = random_layer(spec())
    handle = device.load(layer)
    x = torch.randn(2, 3, 33, generator=torch.Generator().manual_seed(1)).bfloat16()
    result = handle(x)
    assert result.output.shape == (2, 3, 33) and result.output.dtype == torch.float32
    assert_equal(result, golden(layer, x.reshape(6, 33)))
    assert_equal(handle(x[0, 0]), golden(layer, x[0, :1]))


def test_no_tokens_give_an_empty_result_without_a_command(device: Device) -> None:
    result = device.load(random_layer(spec()))(torch.zeros(2, 0, 33))
    assert result.output.shape == (2, 0, 33) and result.experts.shape == (0, 2) and result.weights.shape == (0, 2)
    assert result.experts.dtype == torch.int64
    assert result.report.cycles == 0 and fake(device).commands == []


@pytest.mark.parametrize(
    ("arch", "batch"),
    [
        (ARCH, 4),
        (Arch(columns=4, max_tokens=16, token_blocks=64, max_experts=16), 12),  # 5 blocks a token
        (Arch(columns=4, max_tokens=16, combine_elements=64 * 8), 8),
        (Arch(columns=4, max_tokens=16, logit_words=8), 4),  # 2 words a token
    ],
)
def test_batches_are_as_large_as_the_accelerator_takes(arch: Arch, batch: int) -> None:
    device = Device(FakeTransport(arch))
    handle = device.load(random_layer(spec()))
    assert handle.max_tokens == batch
    result = handle(torch.ones(2 * batch + 1, 33))
    assert fake(device).commands == [batch, batch, 1]
    # One token more than the driver's limit is one too many for the device.
    handle.max_tokens = batch + 1
    device._reserve_workspace(handle)
    with pytest.raises(DeviceError, match=r"above the accelerator|do not fit"):
        handle(torch.ones(batch + 1, 33))
    assert result.report.commands == 3


def test_ring_wraps_and_more_batches_than_its_size_are_run(device: Device) -> None:
    layer = random_layer(spec())
    handle = device.load(layer)
    fake(device).first_head = 0xFFFFFFFD
    device._ring.restart()
    x = torch.randn(4 * RING_COMMANDS + 3, 33, generator=torch.Generator().manual_seed(2))
    assert_equal(handle(x), golden(layer, x))
    assert fake(device).csrs["head"] == (0xFFFFFFFD + RING_COMMANDS + 1) & 0xFFFFFFFF


def test_report_adds_up_over_batches_and_meets_what_the_device_moved(device: Device) -> None:
    handle = device.load(random_layer(spec(shared=SharedSpec(40, True))), "int8")
    parts = [torch.randn(4, 33, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    whole = handle(torch.cat(parts)).report
    assert whole == sum((handle(part).report for part in parts[1:]), handle(parts[0]).report)
    assert whole.commands == 3 and whole.tokens == 12 and whole.cycles == 3 * 5028
    # The fake moves what it must and its array never waits.
    assert whole.compute_limit_cycles == whole.counters["busy"]
    assert whole.necessary_bytes == whole.dram_bytes
    assert whole.memory_limit_cycles == whole.necessary_bytes / 2.0
    assert whole.memory_fraction == whole.memory_limit_cycles / whole.cycles
    assert whole.experts_used <= 5


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (torch.zeros(2, 32), r"activations \[..., 33\], got float32 \[2, 32\]"),
        (torch.zeros(2, 33, dtype=torch.int32), r"got int32 \[2, 33\]"),
        (torch.tensor(1.0), r"got float32 \[\]"),
        (torch.full((1, 33), float("nan")), "token 0, element 0"),
        (torch.full((1, 33), float("inf")), "token 0, element 0"),
        (torch.full((1, 33), 2.0**100), "token 0, element 0"),
    ],
)
def test_bad_activations_are_refused_before_anything_is_sent(device: Device, bad: torch.Tensor, line: str) -> None:
    handle = device.load(random_layer(spec()))
    with pytest.raises(InputError, match=line):
        handle(bad)
    assert fake(device).commands == []


@pytest.mark.parametrize("status", [status for status in Status if status != Status.OK])
def test_error_status_is_told_and_the_next_command_works(device: Device, status: Status) -> None:
    layer = random_layer(spec())
    handle = device.load(layer, name="layer seven")
    x = torch.ones(9, 33)
    fake(device).answers = [Status.OK, status]
    with pytest.raises(DeviceError, match=f"layer seven: .* status {int(status)}: {STATUS_TEXT[status][:20]}"):
        handle(x)
    assert_equal(handle(x), golden(layer, x))


def test_timeout_names_the_blocked_streams_and_the_device_works_again(device: Device) -> None:
    layer = random_layer(spec())
    handle = device.load(layer, name="layer seven")
    x = torch.ones(2, 33)
    fake(device).dead = True
    with pytest.raises(DeviceTimeout, match=r"layer seven: .* waits for: WEIGHT_READ, COMPUTE; it was reset") as error:
        handle(x)
    assert f"{fake(device).bound:,} cycles" in str(error.value)
    fake(device).dead = False
    assert fake(device).resets == 3
    assert_equal(handle(x), golden(layer, x))


def test_bound_grows_with_the_work(device: Device) -> None:
    bounds = []
    for inter in (32, 320):
        handle = device.load(random_layer(spec(inter=inter)))
        for tokens in (1, 4):
            handle(torch.ones(tokens, 33))
            bounds.append(fake(device).bound)
    assert bounds == sorted(bounds) and len(set(bounds)) == 4


def test_interrupted_wait_leaves_a_device_that_works(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(spec())
    handle = device.load(layer)

    def interrupted(until_head: int, max_cycles: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(device.transport, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            handle(torch.ones(9, 33))
    assert_equal(handle(torch.ones(3, 33)), golden(layer, torch.ones(3, 33)))


def test_completion_that_was_never_written_is_an_error(device: Device) -> None:
    handle = device.load(random_layer(spec()))
    fake(device).lost = True
    with pytest.raises(DeviceError, match=r"completion record of command 0, got that of 4294967295; .* not written"):
        handle(torch.ones(1, 33))


@pytest.mark.parametrize(
    ("csr", "line"),
    [
        ("magic", "magic word to be 0x4d6f4548, got 0x2a; load a moe-hw bitstream"),
        ("version", "layout version to be 0x1, got 0x2a"),
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
        (spec(hidden=32 * 20, inter=32 * 25), r"65 blocks .* \(2 x 20 hidden \+ 25 intermediate\), .* at most 64"),
        (spec(hidden=32, shared=SharedSpec(32 * 63, False)), r"65 blocks .* \(2 x 1 hidden \+ 63 intermediate\)"),
        (spec(hidden=513), "544 output elements per token, this accelerator at most 512"),
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
