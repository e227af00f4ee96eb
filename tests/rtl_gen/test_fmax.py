"""``python -m rtl_gen.fmax``: its list, its table and its exit codes."""

from pathlib import Path

import pytest
from amaranth.hdl import Fragment

from boards import DEFAULT_BOARD, load_board
from moe_hw.fit import arch_of
from rtl_gen import fmax, synthesis
from rtl_gen.fmax import BLOCKS, Measurement, main, measure
from rtl_gen.synthesis import Resources
from rtl_gen.timing import Timing

ARCH = arch_of(load_board(DEFAULT_BOARD))


def timing(mhz: float) -> Timing:
    return Timing("clk", 100.0, mhz, start="a", end="b", cells=3, logic=2.0, routing=1000 / mhz - 2.0)


def measurement(block: str, *speeds: float) -> Measurement:
    return Measurement(block, Resources(10, 20, 1, 2), Resources(5, 20, 1, 0.5), tuple(map(timing, speeds)))


def test_names_are_those_of_the_components() -> None:
    for name, make in BLOCKS.items():
        component = make(ARCH)
        assert name.replace("_", "") == type(component).__name__.lower()
        Fragment.get(component, None)


def test_median_decides_and_its_path_is_shown() -> None:
    block = measurement("post", 95.0, 70.0, 81.0)
    assert block.fmax == 81.0
    assert block.middle == timing(81.0)


@pytest.mark.parametrize(("speeds", "code"), [((70.0, 80.0, 81.0), 0), ((79.9, 99.0, 70.0), 1)])
def test_a_block_below_the_minimum_fails(
    speeds: tuple[float, ...], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fmax, "measure", lambda block, *_: measurement(block, *speeds))
    assert main(["row", "post"]) == code
    out, err = capsys.readouterr()
    header, _, *rows = out.splitlines()
    assert header.split()[:6] == ["block", "LUT", "FF", "DSP", "EBR", "MHz"]
    assert [row.split()[0] for row in rows] == ["row", "post"]
    assert ("as fast as its clock, got row 79.9 of 80 MHz, post 79.9 of 80 MHz; add" in err) == bool(code)
    assert "[2/2] post: " in err and "from a to b through 3 cells" in err


def test_the_sdram_controller_has_a_faster_clock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fmax, "measure", lambda block, *_: measurement(block, 133.0, 133.0, 133.0))
    assert main(["post", "sdram_controller"]) == 1
    assert "got sdram_controller 133.0 of 134 MHz;" in capsys.readouterr().err
    assert 1e3 / load_board(DEFAULT_BOARD).memory.clock_ns <= fmax.SDRAM_MHZ


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pots"]) == 2
    assert "expected one of row, " in capsys.readouterr().err
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    monkeypatch.setattr(synthesis, "YOSYS", "yowasp-none")
    assert main(["bursts"]) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("moe-hw: expected yowasp-none in ")


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> Measurement:
        raise KeyboardInterrupt

    monkeypatch.setattr(fmax, "measure", interrupted)
    assert main(["bursts"]) == 130
    assert capsys.readouterr().err == "moe-hw: interrupted\n"


def test_small_block_for_real() -> None:
    steps: list[str] = []
    block = measure("plane_loader", ARCH, steps.append)
    assert block.ecp5.flip_flops == block.ultrascale_plus.flip_flops > 0
    assert block.ecp5.luts > block.ultrascale_plus.luts > 0
    assert len(block.timings) == 3
    assert all(timing.fmax > 100 for timing in block.timings)
    assert all("block." in timing.start + timing.end for timing in block.timings)
    steps.clear()
    assert measure("plane_loader", ARCH, steps.append) == block
    assert not steps
