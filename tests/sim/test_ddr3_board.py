"""A whole board with DDR3, up to DFI: the driver, LiteDRAM's controller, and a chip that checks its rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import moe_hw
from boards import load_board
from host.driver import open_device
from host.transports.serial import SerialTransport
from moe_hw.arch import Arch
from moe_hw.ddr3 import PHASES
from moe_hw.fit import arch_of
from moe_hw.layer import random_layer
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec
from rtl_gen.accelerator import Accelerator
from rtl_gen.emit import to_verilog
from rtl_gen.serial_board import ACCELERATOR
from sim.ddr3_board import SimulatedDdr3Board
from sim.serial import PseudoTerminal
from tests.moe_hw.layers import SPECS
from tests.sim.test_serial_board import PACE, SIMULATED_BAUD, SIZES, opened

BOARD = dataclasses.replace(load_board("ecpix5-85f"), accelerator={**SIZES, "data_bits": 128})
ARCH = Arch(**BOARD.accelerator)

LARGEST_LINE_BYTES = 4096
LEAST_SHARE = 0.85

PATIENT = PACE // 10
"""The pace of the preset, which is ten times as slow to simulate."""


@pytest.fixture(scope="module")
def fpga() -> Iterator[SimulatedDdr3Board]:
    board = SimulatedDdr3Board(BOARD, ARCH, to_verilog(Accelerator(ARCH), ACCELERATOR), SIMULATED_BAUD)
    yield board
    board.close()


def test_layers_are_exact(fpga: SimulatedDdr3Board, tmp_path: Path) -> None:
    """The first that opens the device brings its memory up; the next one finds it so, with what it holds."""
    for name in ("odd", "softcaps"):
        layer = random_layer(SPECS[name], seed=1)
        x = torch.randn(4, layer.spec.hidden, generator=torch.Generator().manual_seed(1))
        with PseudoTerminal(fpga) as terminal, opened(terminal, tmp_path, BOARD) as device:
            result = device.load(layer, weight_format="int4")(x)
            expected = moe_hw.golden(layer, x, weight_format="int4")
            assert torch.equal(result.output, expected.output) and torch.equal(result.experts, expected.experts)
        assert terminal.error is None and fpga.violation is None


@pytest.mark.bench
def test_the_accelerator_of_the_preset_uses_the_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One token, so that weights are all that counts; they are put into the chip, as the line would take hours."""
    board = load_board("ecpix5-85f")
    arch = arch_of(board)
    fpga = SimulatedDdr3Board(board, arch, to_verilog(Accelerator(arch), ACCELERATOR), SIMULATED_BAUD)
    write = SerialTransport.write

    def put(transport: SerialTransport, address: int, data: np.ndarray) -> None:
        values = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if values.size <= LARGEST_LINE_BYTES:
            write(transport, address, values)
        else:
            fpga.memory[address : address + values.size] = values

    monkeypatch.setattr(SerialTransport, "write", put)
    layer = random_layer(LayerSpec(1024, RouterSpec(4, 2), ExpertSpec(512)), seed=1)
    x = torch.randn(1, layer.spec.hidden, generator=torch.Generator().manual_seed(1))
    url = "serial:{}?board={}&baud={}"
    with PseudoTerminal(fpga) as terminal, open_device(url.format(terminal.path, board.name, PATIENT)) as device:
        handle = device.load(layer, weight_format="int4")
        before = fpga.busy_reads
        result = handle(x)
        bursts, clocks = (after - start for after, start in zip(fpga.busy_reads, before, strict=True))
        assert torch.equal(result.output, moe_hw.golden(layer, x, weight_format="int4").output)
    assert terminal.error is None and fpga.violation is None
    fpga.close()
    share = bursts * board.memory.burst_length / (clocks * 2 * PHASES)
    with capsys.disabled():
        print(f"\n{bursts:,} bursts in {clocks:,} clocks of the controller: {share:.1%} of the pins")
    assert share > LEAST_SHARE
