"""Sub-arrays in lockstep: a board whose columns are dealt to several channels, bit-exact whatever each channel does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from boards import load_board
from host.driver import Device
from host.transports.sim import SimTransport, open_board
from moe_hw.errors import DeviceError, UsageError
from moe_hw.fit import arch_of, check
from moe_hw.layer import MoELayer, random_layer
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec
from moe_hw.twins.layer import golden
from tests.host.support import assert_equal, tokens

CHANNELS = 4
SIZES = {
    "columns": 32, "channels": CHANNELS, "data_bits": 64, "addr_bits": 33, "burst_bytes": 256, "vector_blocks": 128,
    "expert_beats": 128, "max_tokens": 16, "slots": 4, "max_experts": 16, "max_top_k": 4, "logit_words": 16,
    "combine_elements": 2048, "lanes": 2,
}  # fmt: skip
HBM = load_board("u280")
BOARD = dataclasses.replace(
    HBM, memory=dataclasses.replace(HBM.memory, channels=CHANNELS, size_mib=64), accelerator=SIZES
)

LAYERS = (
    (random_layer(LayerSpec(1, RouterSpec(3, 2), ExpertSpec(1)), 1), "int4"),
    (random_layer(LayerSpec(70, RouterSpec(5, 2, normalise=False), ExpertSpec(33)), 2), "int8"),
    (random_layer(LayerSpec(300, RouterSpec(16, 4), ExpertSpec(65), SharedSpec(40, gated=True)), 3), "int4"),
    (random_layer(LayerSpec(64, RouterSpec(2, 1), ExpertSpec(200), SharedSpec(5, gated=False)), 4), "int4"),
)


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    check(BOARD, arch_of(BOARD))
    with Device(open_board(BOARD)) as opened:
        yield opened


def simulated(device: Device) -> SimTransport:
    assert isinstance(device.transport, SimTransport)
    return device.transport


@pytest.mark.parametrize(("layer", "weight_format"), LAYERS)
@pytest.mark.parametrize("stall", [0.0, 0.3, 0.7])
def test_layers_equal_the_golden_model(device: Device, layer: MoELayer, weight_format: str, stall: float) -> None:
    """With stalls, the channels deliver at different times."""
    simulated(device).simulated.set_stall(11, stall)
    handle = device.load(layer, weight_format)
    for count in (1, 2, 7, 16):
        x = tokens(layer, count)
        result = handle(x)
        assert_equal(result, golden(layer, x, weight_format))
        assert result.report.counters["busy"] == result.report.compute_limit_cycles
    device.unload(handle)
    simulated(device).simulated.set_stall(0, 0.0)


def test_every_channel_is_read_and_its_errors_are_noticed(device: Device) -> None:
    board = simulated(device).simulated
    layer, weight_format = LAYERS[1]
    handle = device.load(layer, weight_format)
    x = tokens(layer, 5)
    expected = golden(layer, x, weight_format)
    first_router = handle.address + device.arch.segment_bytes  # behind the descriptor
    for channel in range(CHANNELS):
        board.add_fault("read", first_router + channel * 256, 8)
        with pytest.raises(DeviceError, match="weights"):
            handle(x)
        board.clear_faults()
        assert_equal(handle(x), expected)
    device.unload(handle)


def test_reset_in_flight(device: Device) -> None:
    board = simulated(device).simulated
    layer, weight_format = LAYERS[2]
    handle = device.load(layer, weight_format)
    x = tokens(layer, 9)
    expected = golden(layer, x, weight_format)
    before = board.cycles
    assert_equal(handle(x), expected)
    whole = board.cycles - before
    run = board.run
    for part in range(1, 8):
        try:
            board.run = lambda limit, stop=whole * part // 8: run(stop)  # type: ignore[method-assign]
            with pytest.raises(DeviceError):
                handle(x)
        finally:
            board.run = run  # type: ignore[method-assign]
        assert_equal(handle(x), expected)
    device.unload(handle)


def test_channels_must_be_the_memorys() -> None:
    wrong = dataclasses.replace(BOARD, accelerator=SIZES | {"channels": 2})
    with pytest.raises(UsageError, match="accelerator.channels: expected 1 or the memory's 4, got 2"):
        check(wrong, arch_of(wrong))
