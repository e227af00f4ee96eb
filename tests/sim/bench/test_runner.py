"""A bench that does not build says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_hw.errors import SetupError
from rtl_gen.delay import Delay
from sim import verilator
from sim.bench.runner import run_bench


def test_message_shows_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = verilator.environment()
    environment["MAKEFLAGS"] = "CXX=expected-compiler"
    monkeypatch.setattr(verilator, "environment", lambda: environment)
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match=r"the end of .*build\.log:(.|\n)*expected-compiler"):
        run_bench(Delay(1, 3), __name__)
