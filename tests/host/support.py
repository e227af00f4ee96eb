"""Layers, comparisons and a device on a fake transport, for the tests of the driver."""

from __future__ import annotations

import torch

from host.driver import Device
from moe_hw.arch import Arch
from moe_hw.layer import MoELayer
from moe_hw.result import Result
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec
from tests.host.fake import FakeTransport

ARCH = Arch(
    columns=4, vector_blocks=64, max_tokens=4, slots=2, max_experts=16, max_top_k=4, logit_words=16,
    combine_elements=512,
)  # fmt: skip


def spec(
    hidden: int = 33,
    inter: int = 17,
    experts: int = 5,
    top_k: int = 2,
    shared: SharedSpec | None = None,
    normalise: bool = True,
) -> LayerSpec:
    return LayerSpec(hidden, RouterSpec(experts, top_k, normalise=normalise), ExpertSpec(inter), shared)


def tokens(layer: MoELayer, count: int) -> torch.Tensor:
    return torch.randn(count, layer.spec.hidden, generator=torch.Generator().manual_seed(count))


def assert_equal(result: Result, expected: Result) -> None:
    assert torch.equal(result.output.reshape(expected.output.shape), expected.output)
    assert torch.equal(result.experts, expected.experts)
    assert torch.equal(result.weights, expected.weights)


def fake(device: Device) -> FakeTransport:
    assert isinstance(device.transport, FakeTransport)
    return device.transport
