"""The simulator as a transport: what it opens, and that every access reaches the simulated board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boards import load_board
from host.transports import sim
from moe_hw.errors import DeviceError, SetupError, UsageError
from moe_hw.fit import arch_of
from moe_hw.generated import write_generated
from moe_hw.registers import csr_address

BOARD = load_board("ulx3s-85f")
ARCH = arch_of(BOARD)


class Recorder:
    """Stands in for a simulated board."""

    def __init__(self, library: Any = None, arch: Any = None, board: Any = None):
        self.made = (library, arch, board)
        self.calls: list[tuple[Any, ...]] = []
        self.memory_bytes = 1 << 20

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls.append((name, *(arg.tobytes() if isinstance(arg, np.ndarray) else arg for arg in args)))
            return 42

        return call


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the simulator would be built from."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(sim, "build", lambda *args: calls.append(args) or "library")
    monkeypatch.setattr(sim, "SimulatedBoard", Recorder)
    return calls


def test_accesses_reach_the_board() -> None:
    board = Recorder()
    transport = sim.SimTransport(board, ARCH, BOARD)  # type: ignore[arg-type]
    transport.read(64, 5)
    transport.write(128, np.arange(6, dtype=np.uint16).reshape(2, 3)[:, ::2])
    assert transport.csr_read("head") == 42
    transport.csr_write("tail", 7)
    transport.wait(7, 1000)
    transport.reset()
    transport.close()
    assert board.calls == [
        ("read", 64, 5),
        ("write", 128, np.array([0, 2, 3, 5], np.uint16).tobytes()),
        ("csr_read", csr_address("head")),
        ("csr_write", csr_address("tail"), 7),
        ("run", 1000),
        ("reset",),
        ("close",),
    ]


def test_figures_are_the_boards() -> None:
    transport = sim.SimTransport(Recorder(), ARCH, BOARD)  # type: ignore[arg-type]
    assert transport.config_hash == ARCH.hash
    assert (transport.clock_mhz, transport.memory_bytes) == (80.0, 1 << 20)
    # 16 pins at 133 MT/s against 80 MHz.
    assert transport.memory_bytes_per_cycle == pytest.approx(2 * 133 / 80)


def test_generated_directory_is_built_from_its_files(tmp_path: Path, built: list[tuple[Any, ...]]) -> None:
    write_generated(tmp_path / "out", BOARD, ARCH, "module moe_hw; endmodule", {}, {})
    transport = sim.open_sim(str(tmp_path / "out"), print)
    assert built == [("module moe_hw; endmodule", ARCH, print)]
    assert transport.simulated.made == ("library", ARCH, BOARD)  # type: ignore[attr-defined]
    (tmp_path / "out" / "moe_hw.v").write_text("module other; endmodule")
    with pytest.raises(DeviceError, match="expected SHA-256"):
        sim.open_sim(str(tmp_path / "out"))


def test_tools_are_looked_for_before_the_accelerator_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    from rtl_gen import emit

    def missing() -> None:
        raise SetupError("expected g++")

    monkeypatch.setattr(sim, "prepare", missing)
    monkeypatch.setattr(emit, "to_verilog", lambda *args: pytest.fail("generated before looking"))
    with pytest.raises(SetupError, match=r"expected g\+\+"):
        sim.open_sim("ulx3s-85f")


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("./nothing", "which is none; make it first"),
        ("nothing", "board: expected one of .*ulx3s-85f"),
        ("./nothing.yaml", "nothing.yaml: expected a readable board file"),
    ],
)
def test_missing_target_is_refused(
    target: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[tuple[Any, ...]]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=line):
        sim.open_sim(target)
    assert built == []
