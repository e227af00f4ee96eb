"""``import moe_hw`` is quick, and its names are what the documentation promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import moe_hw


def test_public_names() -> None:
    from host.driver import open_device
    from host.integrate import accelerate
    from moe_hw.layer import MoELayer
    from moe_hw.routes import GivenRoutes
    from moe_hw.twins.layer import golden

    assert (moe_hw.open_device, moe_hw.accelerate) == (open_device, accelerate)
    assert (moe_hw.MoELayer, moe_hw.GivenRoutes, moe_hw.golden) == (MoELayer, GivenRoutes, golden)
    for name in moe_hw.__all__:
        assert hasattr(moe_hw, name) and name in dir(moe_hw)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = moe_hw.nothing


def test_every_public_error_has_its_exit_code() -> None:
    assert (moe_hw.UsageError.exit_code, moe_hw.SetupError.exit_code) == (2, 3)
    assert {error.exit_code for error in (moe_hw.ModelError, moe_hw.ImageError, moe_hw.InputError)} == {4}
    assert (moe_hw.DeviceError.exit_code, moe_hw.DeviceTimeout.exit_code) == (5, 5)


@pytest.mark.parametrize("module", ["moe_hw", "moe_hw.cli"])
def test_import_loads_nothing_large(module: str) -> None:
    large = "{'torch', 'amaranth', 'transformers', 'numpy'}"
    code = f"import sys, {module}; print(sorted({large} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
