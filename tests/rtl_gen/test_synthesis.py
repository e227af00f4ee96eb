"""Synthesis of the default accelerator for its board against the estimate of ``moe-hw generate``; speed of a module."""

from pathlib import Path

import pytest

from boards import DEFAULT_BOARD, load_board
from moe_hw.arch import ROWS
from moe_hw.fit import arch_of, estimate
from rtl_gen.accelerator import Accelerator
from rtl_gen.emit import to_verilog
from rtl_gen.synthesis import ECP5, ULTRASCALE_PLUS, Resources, count, place_and_route, resources_of

BLOCK_RAM_KBITS = 18

LUTS_PER_MAC, DSPS_PER_MAC = 156, 151 / 256
"""Of the complete accelerator, as this test measured them."""

COUNTER = """
module counter(input clk, input d, output reg [7:0] q);
  always @(posedge clk) q <= q * q + d;
endmodule
"""


def test_default_board_fits_as_estimated() -> None:
    board = load_board(DEFAULT_BOARD)
    arch = arch_of(board)
    used = count(to_verilog(Accelerator(arch), "moe_hw"), "moe_hw", ECP5, "-noflatten")

    needs = estimate(board, arch)
    assert used.dsps == needs["dsps"] <= board.fpga.dsps
    assert used.luts == pytest.approx(needs["luts"], rel=0.1)
    assert used.luts <= 0.49 * board.fpga.luts
    macs = ROWS * arch.columns
    assert used.luts / macs == pytest.approx(LUTS_PER_MAC, rel=0.05)
    assert used.dsps / macs == pytest.approx(DSPS_PER_MAC, rel=0.05)
    assert used.block_rams * BLOCK_RAM_KBITS <= board.fpga.bram_kbits


def test_each_flow_counts_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    steps: list[str] = []
    first = count(COUNTER, "counter", ECP5, progress=steps.append)
    assert first.luts > 0 and first.flip_flops == 8 and first.block_rams == 0
    assert count(COUNTER, "counter", ECP5, progress=steps.append) == first
    assert steps == [f"synthesis, {ECP5.flow}"]
    assert count(COUNTER, "counter", ULTRASCALE_PLUS, progress=steps.append) != first
    assert len(steps) == 2


def test_place_and_route_depends_on_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_HW_CACHE", str(tmp_path))
    steps: list[str] = []
    first = place_and_route(COUNTER, "counter", 1, steps.append)
    assert first.fmax > 50
    assert first.start.startswith("q") and first.end.startswith("q")
    assert first.logic + first.routing == pytest.approx(1000 / first.fmax, rel=0.01)
    assert place_and_route(COUNTER, "counter", 1, steps.append) == first
    place_and_route(COUNTER, "counter", 2, steps.append)
    assert steps == ["synthesis for place and route", "place and route, seed 1", "place and route, seed 2"]


def test_cells_are_counted_by_what_they_take() -> None:
    cells = {"LUT4": 5, "CCU2C": 3, "PFUMX": 9, "TRELLIS_DPR16X4": 1, "TRELLIS_FF": 7}
    stat = {"design": {"num_cells_by_type": cells}}
    assert resources_of(stat, ECP5) == Resources(luts=15, flip_flops=7, dsps=0, block_rams=0)
    cells = {"LUT6": 5, "RAM32M16": 1, "FDRE": 7, "RAMB18E2": 3, "RAMB36E2": 1}
    stat = {"design": {"num_cells_by_type": cells}}
    assert resources_of(stat, ULTRASCALE_PLUS) == Resources(luts=13, flip_flops=7, dsps=0, block_rams=2.5)
