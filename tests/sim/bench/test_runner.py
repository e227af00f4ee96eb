"""A bench that does not build says why; what has been compiled is not compiled again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cocotb
import pytest

from moe_hw.errors import SetupError
from rtl_gen.delay import Delay
from sim import verilator
from sim.bench.runner import run_bench
from sim.bench.streams import start


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def nothing(dut: Any) -> None:
    await start(dut)


def test_message_shows_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = verilator.environment()
    environment["MAKEFLAGS"] = "CXX=expected-compiler"
    monkeypatch.setattr(verilator, "environment", lambda: environment)
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match=r"the end of .*build\.log:(.|\n)*expected-compiler"):
        run_bench(Delay(1, 3), __name__)


def test_what_was_compiled_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Verilator's own library for all benches, and a bench with it."""
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    compiled = []
    for stages in (3, 4, 3):
        run_bench(Delay(1, stages), __name__)
        log = max(tmp_path.glob("bench/*/build.log"), key=lambda file: file.stat().st_mtime_ns).read_text()
        compiled.append([name for name in ("verilated.cpp", "Vtop__ALL.cpp") if f"{name}\n" in log])
    assert compiled == [["verilated.cpp", "Vtop__ALL.cpp"], ["Vtop__ALL.cpp"], []]
