"""A whole board at its pins: the driver at a pseudo-terminal, the FPGA, and a memory chip that checks its rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import moe_hw
from boards import Board, as_yaml, load_board
from host.driver import Device, open_device
from moe_hw.arch import Arch
from moe_hw.layer import MoELayer, random_layer
from moe_hw.sites import moe_sites
from rtl_gen.accelerator import Accelerator
from rtl_gen.emit import to_verilog
from rtl_gen.serial_board import ACCELERATOR
from sim.bench.runner import random_seed
from sim.serial import LineFaults, PseudoTerminal
from sim.serial_board import SimulatedSerialBoard
from tests.moe_hw.layers import SPECS

SIZES = {
    "columns": 4, "vector_blocks": 64, "expert_beats": 64, "max_tokens": 4, "slots": 2, "max_experts": 8,
    "max_top_k": 2, "logit_words": 16, "combine_elements": 1024,
}  # fmt: skip
BOARD = dataclasses.replace(load_board("ulx3s-85f"), accelerator=SIZES)
ARCH = Arch(**SIZES)
DEMO = Path(moe_hw.__file__).parent / "demo" / "model"

SIMULATED_BAUD = 20_000_000
"""Of the simulated line: four clocks a bit, for speed."""

PACE = 100_000
"""What the driver is told of it: the simulation is slower than the line, and slower still on a busy machine."""


@pytest.fixture(scope="module")
def fpga() -> Iterator[SimulatedSerialBoard]:
    board = SimulatedSerialBoard(BOARD, ARCH, to_verilog(Accelerator(ARCH), ACCELERATOR), SIMULATED_BAUD)
    yield board
    board.close()


def board_file(folder: Path, board: Board) -> Path:
    file = folder / "board.yaml"
    file.write_text(as_yaml(board))
    return file


def opened(terminal: PseudoTerminal, folder: Path, board: Board = BOARD) -> Device:
    return open_device(f"serial:{terminal.path}?board={board_file(folder, board)}&baud={PACE}")


def is_exact(device: Device, layer: MoELayer, x: torch.Tensor) -> bool:
    handle = device.load(layer, weight_format="int4")
    result, expected = handle(x), moe_hw.golden(layer, x, weight_format="int4")
    handle.unload()
    return torch.equal(result.output, expected.output) and torch.equal(result.experts, expected.experts)


def test_a_layer_of_the_demo_model_is_bit_exact(fpga: SimulatedSerialBoard, tmp_path: Path) -> None:
    """As it would run on a board: nothing but the PLL, the pads' delays and the USB chip is missing."""
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO)
    layer = MoELayer.from_module(moe_sites(model)[0].module)
    x = torch.randn(3, layer.spec.hidden, generator=torch.Generator().manual_seed(1))
    with PseudoTerminal(fpga) as terminal, opened(terminal, tmp_path) as device:
        assert is_exact(device, layer, x)
    assert terminal.error is None and fpga.violation is None


def test_layers_are_exact_on_a_bad_line_and_after_resets(fpga: SimulatedSerialBoard, tmp_path: Path) -> None:
    seed = random_seed()
    faults = LineFaults(seed, 1e-4)
    with PseudoTerminal(fpga, faults) as terminal, opened(terminal, tmp_path) as device:
        for name in ("odd", "softcaps"):
            layer = random_layer(SPECS[name], seed=1)
            generator = torch.Generator().manual_seed(seed)
            assert is_exact(device, layer, torch.randn(4, layer.spec.hidden, generator=generator)), name
            device.ring.restart()
    assert faults.count > 0
    assert terminal.error is None and fpga.violation is None


def test_a_reset_in_the_middle_of_a_command_leaves_memory_and_bridge_alone(
    fpga: SimulatedSerialBoard, tmp_path: Path
) -> None:
    layer = random_layer(SPECS["odd"], seed=2)
    x = torch.randn(4, layer.spec.hidden, generator=torch.Generator().manual_seed(2))
    with PseudoTerminal(fpga) as terminal, opened(terminal, tmp_path) as device:
        transport = device.transport
        handle = device.load(layer, weight_format="int4")
        place = np.arange(999, dtype=np.uint8)
        transport.write(BOARD.memory.size_bytes - 2000, place)
        for _ in range(5):
            transport.csr_write("tail", transport.csr_read("head") + 1)  # the command of before, or none
            transport.reset()
            assert transport.csr_read("head") == 0
            device.ring.restart()
            assert np.array_equal(transport.read(BOARD.memory.size_bytes - 2000, 999), place)
            expected = moe_hw.golden(layer, x, weight_format="int4")
            assert torch.equal(handle(x).output, expected.output)
    assert terminal.error is None and fpga.violation is None
