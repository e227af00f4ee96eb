"""The simulated default board, for tests of what is measured on it."""

from __future__ import annotations

import functools
from typing import Any

from boards import DEFAULT_BOARD, load_board
from host.driver import Device, open_device
from moe_hw.cli.bench import measure
from moe_hw.cli.console import Progress
from moe_hw.spec import LayerSpec
from moe_hw.synthetic import SyntheticLayer


@functools.cache
def _device() -> Device:
    return open_device(f"sim:{DEFAULT_BOARD}")


def simulated_figures(spec: LayerSpec, weight_format: str, tokens: int) -> dict[str, Any]:
    """What ``moe-hw bench --json`` prints, but for the build."""
    return measure(_device(), load_board(DEFAULT_BOARD), [SyntheticLayer(spec, weight_format)], tokens, Progress())
