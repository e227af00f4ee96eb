"""Layer calls on a fake device that reads commands, descriptors and weights back from memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host.driver import Device
from moe_hw.arch import Arch
from moe_hw.errors import DeviceError, InputError
from moe_hw.formats import FORMATS
from moe_hw.layer import random_layer
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec
from moe_hw.twins.layer import golden
from tests.host.fake import FakeTransport
from tests.host.support import ARCH, assert_equal, fake, spec
from tests.moe_hw.layers import layer_specs, routes_of


@pytest.fixture
def device() -> Device:
    return Device(FakeTransport(ARCH))


@settings(max_examples=60, deadline=None)
@given(
    spec=layer_specs(st.integers(1, 140), 9, 2),
    weight_format=st.sampled_from(list(FORMATS)),
    columns=st.sampled_from([4, 8, 32, 64]),
    combine_elements=st.sampled_from([256, 512, 1 << 14]),
    tokens=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_any_layer_equals_the_golden_model(
    spec: LayerSpec, weight_format: str, columns: int, combine_elements: int, tokens: int, seed: int
) -> None:
    arch = Arch(columns=columns, max_tokens=4, max_experts=16, max_top_k=4, combine_elements=combine_elements)
    layer, routes = random_layer(spec, seed), routes_of(spec, tokens, seed)
    x = torch.randn(tokens, spec.hidden, generator=torch.Generator().manual_seed(seed))
    with Device(FakeTransport(arch)) as device:
        result = device.load(layer, weight_format)(x, routes)
    assert_equal(result, golden(layer, x, weight_format, routes))


def test_routes_are_given_when_there_is_no_router_and_only_then(device: Device) -> None:
    own, given = random_layer(spec()), random_layer(LayerSpec(33, RouterSpec(5, 2, "given"), ExpertSpec(17)))
    x = torch.zeros(2, 33)
    routes = routes_of(given.spec, 2)
    with pytest.raises(InputError, match="without: expected routes, since the layer has no router"):
        device.load(given, name="without")(x)
    with pytest.raises(InputError, match="with: expected no routes, since it has a router"):
        device.load(own, name="with")(x, routes)


def test_shape_is_kept_and_any_float_type_is_taken(device: Device) -> None:
    layer = random_layer(spec())
    handle = device.load(layer)
    x = torch.randn(2, 3, 33, generator=torch.Generator().manual_seed(1)).bfloat16()
    result = handle(x)
    assert result.output.shape == (2, 3, 33) and result.output.dtype == torch.float32
    assert_equal(result, golden(layer, x.reshape(6, 33)))
    assert_equal(handle(x[0, 0]), golden(layer, x[0, :1]))


def test_unload_frees_the_memory_once(device: Device) -> None:
    device.load(random_layer(spec())).unload()
    free = device.memory.free_bytes
    handle = device.load(random_layer(spec()))
    handle.unload()
    assert device.memory.free_bytes == free and not handle.loaded
    with pytest.raises(DeviceError, match="was unloaded"):
        handle.unload()


def test_no_tokens_give_an_empty_result_without_a_command(device: Device) -> None:
    result = device.load(random_layer(spec()))(torch.zeros(2, 0, 33))
    assert result.output.shape == (2, 0, 33) and result.experts.shape == (0, 2) and result.weights.shape == (0, 2)
    assert result.experts.dtype == torch.int64
    assert result.report.cycles == 0 and fake(device).commands == []


@pytest.mark.parametrize(
    ("arch", "batch"),
    [
        (ARCH, 4),
        (Arch(columns=4, max_tokens=8, slots=1, vector_blocks=64, logit_words=2), 8),  # jobs do not limit batches
        (Arch(columns=4, max_tokens=16, combine_elements=64 * 8), 8),
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
    device._reserve_workspace(handle.workspace_bytes, "a test")
    with pytest.raises(DeviceError, match=r"above the accelerator|slots or the chunk"):
        handle(torch.ones(batch + 1, 33))
    assert result.report.commands == 3


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


def test_bound_grows_with_the_work(device: Device) -> None:
    bounds = []
    for inter in (32, 320):
        handle = device.load(random_layer(spec(inter=inter)))
        for tokens in (1, 4):
            handle(torch.ones(tokens, 33))
            bounds.append(fake(device).bound)
    assert bounds == sorted(bounds) and len(set(bounds)) == 4
