"""A block of every family on one simulated bitstream, in one process: bit for bit, and close to the block itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from host.driver import Device, open_device
from host.integrate import accelerate
from tests.moe_hw.blocks import ENTRIES, RUN, SETTINGS, Model, output

SMALLEST_SQNR = 30.0
"""Decibels in int8 with weights that keep activations of order one."""


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with open_device("sim:ulx3s-85f") as opened:
        yield opened


@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in RUN), *SETTINGS])
def test_a_block_is_bit_exact_and_close_to_its_own_output(device: Device, name: str, changes: dict[str, Any]) -> None:
    model = Model(ENTRIES[name].build(**changes))
    expected = output(model, name)
    acceleration = accelerate(model, device, "int8", check=True)
    found = output(model, name)
    assert acceleration.failed == 0 and acceleration.equal == len(acceleration.layers)
    error = (found - expected).double().square().sum()
    assert 10 * torch.log10(expected.double().square().sum() / error) > SMALLEST_SQNR
    acceleration.restore()
    assert torch.equal(output(model, name), expected)
