"""moe-hw: FPGA accelerators for Mixture-of-Experts models.

The names below are the public interface. They are imported when they are first used, so ``import moe_hw`` is quick
and the floors below the driver do not depend on it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moe_hw.errors import (
    DeviceError,
    DeviceTimeout,
    ImageError,
    InputError,
    ModelError,
    MoeHwError,
    SetupError,
    UnsupportedLayer,
    UsageError,
)

if TYPE_CHECKING:
    from host.driver import open_device
    from host.integrate import accelerate
    from moe_hw.layer import MoELayer
    from moe_hw.routes import GivenRoutes
    from moe_hw.twins.layer import golden

__version__ = "0.1.0"

__all__ = [
    "DeviceError",
    "DeviceTimeout",
    "GivenRoutes",
    "ImageError",
    "InputError",
    "MoELayer",
    "ModelError",
    "MoeHwError",
    "SetupError",
    "UnsupportedLayer",
    "UsageError",
    "__version__",
    "accelerate",
    "golden",
    "open_device",
]

_LAZY = {
    "GivenRoutes": "moe_hw.routes",
    "MoELayer": "moe_hw.layer",
    "accelerate": "host.integrate",
    "golden": "moe_hw.twins.layer",
    "open_device": "host.driver",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'moe_hw' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
