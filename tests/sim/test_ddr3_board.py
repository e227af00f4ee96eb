"""A whole board with DDR3, up to DFI: the driver, LiteDRAM's controller, and a chip that checks its rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import moe_hw
from boards import as_yaml, load_board
from host.driver import Device, open_device
from moe_hw.arch import Arch
from moe_hw.layer import random_layer
from rtl_gen.accelerator import Accelerator
from rtl_gen.emit import to_verilog
from rtl_gen.serial_board import ACCELERATOR
from sim.ddr3_board import SimulatedDdr3Board
from sim.serial import PseudoTerminal
from tests.moe_hw.layers import SPECS
from tests.sim.test_serial_board import PACE, SIMULATED_BAUD, SIZES

BOARD = dataclasses.replace(load_board("ecpix5-85f"), accelerator={**SIZES, "data_bits": 128})
ARCH = Arch(**BOARD.accelerator)


@pytest.fixture(scope="module")
def fpga() -> Iterator[SimulatedDdr3Board]:
    board = SimulatedDdr3Board(BOARD, ARCH, to_verilog(Accelerator(ARCH), ACCELERATOR), SIMULATED_BAUD)
    yield board
    board.close()


def opened(terminal: PseudoTerminal, folder: Path) -> Device:
    file = folder / "board.yaml"
    file.write_text(as_yaml(BOARD))
    return open_device(f"serial:{terminal.path}?board={file}&baud={PACE}")


def test_layers_are_exact(fpga: SimulatedDdr3Board, tmp_path: Path) -> None:
    """The first that opens the device brings its memory up; the next one finds it so, with what it holds."""
    for name in ("odd", "softcaps"):
        layer = random_layer(SPECS[name], seed=1)
        x = torch.randn(4, layer.spec.hidden, generator=torch.Generator().manual_seed(1))
        with PseudoTerminal(fpga) as terminal, opened(terminal, tmp_path) as device:
            result = device.load(layer, weight_format="int4")(x)
            expected = moe_hw.golden(layer, x, weight_format="int4")
            assert torch.equal(result.output, expected.output) and torch.equal(result.experts, expected.experts)
        assert terminal.error is None and fpga.violation is None
