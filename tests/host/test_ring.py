"""Commands on a fake device: order, errors, and a device that works again after each of them."""

from __future__ import annotations

import pytest
import torch

from host.driver import Device
from host.ring import RING_COMMANDS
from moe_hw.errors import DeviceError, DeviceTimeout
from moe_hw.layer import random_layer
from moe_hw.registers import STATUS_TEXT, Status
from moe_hw.twins.layer import golden
from tests.host.fake import FakeTransport
from tests.host.support import ARCH, assert_equal, fake, spec


@pytest.fixture
def device() -> Device:
    return Device(FakeTransport(ARCH))


def test_ring_wraps_and_more_batches_than_its_size_are_run(device: Device) -> None:
    layer = random_layer(spec())
    handle = device.load(layer)
    fake(device).first_head = 0xFFFFFFFD
    device.ring.restart()
    x = torch.randn(4 * RING_COMMANDS + 3, 33, generator=torch.Generator().manual_seed(2))
    assert_equal(handle(x), golden(layer, x))
    assert fake(device).csrs["head"] == (0xFFFFFFFD + RING_COMMANDS + 1) & 0xFFFFFFFF


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
