"""Building and caching the simulated board."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from boards import load_board
from moe_hw.arch import Arch
from moe_hw.errors import SetupError
from sim import build
from sim.board import SimulatedBoard

INPUTS = {
    "clk": 1, "rst": 1, "s_axil__awaddr": 8, "s_axil__awvalid": 1, "s_axil__wdata": 32, "s_axil__wstrb": 4,
    "s_axil__wvalid": 1, "s_axil__bready": 1, "s_axil__araddr": 8, "s_axil__arvalid": 1, "s_axil__rready": 1,
    "m_axi__arready": 1, "m_axi__rdata": 32, "m_axi__rresp": 2, "m_axi__rlast": 1, "m_axi__rvalid": 1,
    "m_axi__awready": 1, "m_axi__wready": 1, "m_axi__bresp": 2, "m_axi__bvalid": 1,
}  # fmt: skip
OUTPUTS = {
    "s_axil__awready": 1, "s_axil__wready": 1, "s_axil__bresp": 2, "s_axil__bvalid": 1, "s_axil__arready": 1,
    "s_axil__rdata": 32, "s_axil__rresp": 2, "s_axil__rvalid": 1, "m_axi__araddr": 32, "m_axi__arlen": 8,
    "m_axi__arsize": 3, "m_axi__arburst": 2, "m_axi__arvalid": 1, "m_axi__rready": 1, "m_axi__awaddr": 32,
    "m_axi__awlen": 8, "m_axi__awsize": 3, "m_axi__awburst": 2, "m_axi__awvalid": 1, "m_axi__wdata": 32,
    "m_axi__wstrb": 4, "m_axi__wlast": 1, "m_axi__wvalid": 1, "m_axi__bready": 1, "busy": 1,
}  # fmt: skip


def verilog(busy: int) -> str:
    """An accelerator that does nothing; ``busy`` tells one from another."""
    ports = [f"input [{width - 1}:0] {name}" for name, width in INPUTS.items()]
    ports += [f"output [{width - 1}:0] {name}" for name, width in OUTPUTS.items()]
    assigns = [f"assign {name} = {busy if name == 'busy' else 0};" for name in OUTPUTS]
    return "\n".join([f"module moe_hw({', '.join(ports)});", *assigns, "endmodule", ""])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    return tmp_path / "sim"


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.suffix not in (".so", ".log", ".lock")]


def test_builds_once_for_one_content(cache: Path) -> None:
    steps: list[str] = []
    library = build.build(verilog(1), Arch(), steps.append)
    assert steps == ["translating the accelerator to C++", "compiling the simulator"]
    assert library.parent == cache and leftovers(cache) == []
    assert build.build(verilog(1), Arch(), steps.append) == library and len(steps) == 2
    other = build.build(verilog(0), Arch(), steps.append)
    assert other != library and len(steps) == 4
    for path, cycles in ((library, 7), (other, 1)):
        with SimulatedBoard(path, Arch(), load_board("ulx3s-85f")) as device:
            assert device.run(7) == cycles


def test_verilators_own_library_is_compiled_once(cache: Path) -> None:
    logs = [build.build(verilog(busy), Arch()).with_suffix(".log").read_text() for busy in (0, 1)]
    assert ["verilated.cpp" in log for log in logs] == [True, False]


def test_a_changed_harness_is_built_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = build.build_dram()
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in build._DRAM:
        (copy / name).write_bytes((build._FOLDER / name).read_bytes())
    monkeypatch.setattr(build, "_FOLDER", copy)
    with_copy = build.build_dram()
    (copy / "dram.h").write_text((copy / "dram.h").read_text() + "\n")
    assert len({library, with_copy, build.build_dram()}) == 3


def test_a_failed_step_names_its_first_error_and_log(cache: Path) -> None:
    with pytest.raises(SetupError) as failure:
        build.build(verilog(1).replace("assign busy = 1", "assign busy = nothing("), Arch())
    message = str(failure.value)
    log = Path(message.rsplit(" ", 1)[1])
    assert "\n" not in message and "translating the accelerator to C++ failed: %Error: moe_hw.v:" in message
    assert "syntax error" in log.read_text() and leftovers(cache) == [] and not list(cache.glob("*.so"))


def test_a_bus_of_another_width_does_not_compile(cache: Path) -> None:
    with pytest.raises(SetupError, match=r"compiling the simulator failed: .*bus is not as wide as the Arch says"):
        build.build(verilog(1), Arch(data_bits=64))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path / "file"))
    with pytest.raises(SetupError, match=r"expected room and permission .*; free space or set MOE_HW_CACHE"):
        build.build_dram()


def test_a_full_disk_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(cache.parent)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(SetupError, match="No space left on device; free space or set MOE_HW_CACHE"):
        build.build("module moe_hw(", Arch())


def test_tools_and_cache_are_checked_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.prepare()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SetupError, match="Not a directory; free space or set MOE_HW_CACHE"):
        build.prepare()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"expected g\+\+ on PATH; install it"):
        build.prepare()


def test_an_empty_variable_means_the_usual_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_HW_CACHE", "")
    assert build.cache_root() == Path.home() / ".cache" / "moe-hw" / "sim"


def _build(busy: int, results: multiprocessing.Queue[tuple[str, list[str]]]) -> None:
    steps: list[str] = []
    results.put((str(build.build(verilog(busy), Arch(), steps.append)), steps))


def test_two_processes_build_it_once(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[tuple[str, list[str]]] = context.Queue()
    processes = [context.Process(target=_build, args=(1, results)) for _ in range(2)]
    for process in processes:
        process.start()
    (first, steps), (second, more) = results.get(timeout=300), results.get(timeout=300)
    for process in processes:
        process.join()
    assert first == second and len(steps) + len(more) == 2


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing_that_hurts(cache: Path, kill: signal.Signals) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[tuple[str, list[str]]] = context.Queue()
    process = context.Process(target=_build, args=(0, results))
    process.start()
    while not list(cache.glob("*.partial-*/Vmoe_hw.mk")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid or 0, kill)
    process.join(60)
    assert process.exitcode not in (0, None)
    assert not list(cache.glob("*.so"))
    if kill == signal.SIGINT:
        assert leftovers(cache) == []
    steps: list[str] = []
    library = build.build(verilog(0), Arch(), steps.append)
    assert len(steps) == 2 and leftovers(cache) == []
    with SimulatedBoard(library, Arch(), load_board("ulx3s-85f")) as device:
        assert device.run(5) == 1
