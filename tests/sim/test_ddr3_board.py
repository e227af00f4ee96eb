"""A whole board with DDR3 and Ethernet: driver, LiteDRAM's controller, LiteEth's core, a chip that checks its rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import moe_hw
from boards import load_board
from host.driver import Device, open_device
from host.transports.bridged import BridgedTransport
from moe_hw.arch import Arch
from moe_hw.bridge import HEADER, LARGEST_COUNT, WINDOW, Opcode, encode, whole_words
from moe_hw.ddr3 import PHASES
from moe_hw.fit import arch_of
from moe_hw.layer import random_layer
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec
from rtl_gen.accelerator import Accelerator
from rtl_gen.emit import to_verilog
from rtl_gen.serial_board import ACCELERATOR
from sim.bench.runner import random_seed
from sim.ddr3_board import SimulatedDdr3Board
from sim.network import PacketFaults, SimulatedNetwork
from sim.serial import PseudoTerminal
from tests.moe_hw.layers import SPECS
from tests.sim.test_serial_board import PACE, SIMULATED_BAUD, SIZES, board_file, is_exact, opened

BOARD = dataclasses.replace(load_board("ecpix5-85f"), accelerator={**SIZES, "data_bits": 128})
ARCH = Arch(**BOARD.accelerator)

LARGEST_LINE_BYTES = 4096
LEAST_SHARE = 0.85
LEAST_BYTES_A_CYCLE = 0.6

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


def over_the_network(network: SimulatedNetwork, folder: Path) -> Device:
    return open_device(f"{network.url}?board={board_file(folder, BOARD)}&kbit={PACE // 1000}")


@pytest.fixture(scope="module")
def neighbour(fpga: SimulatedDdr3Board, tmp_path_factory: pytest.TempPathFactory) -> SimulatedDdr3Board:
    """The board with its memory up, which knows the host's station: lost, the question is asked again after 0.1 s only,
    for which no simulation is patient enough."""
    with SimulatedNetwork(fpga, BOARD.ethernet) as network:
        network.ping(b"is there anybody")
        with over_the_network(network, tmp_path_factory.mktemp("board")):
            pass
    assert network.error is None and (network.asked, network.echoes) == (1, [b"is there anybody"])
    return fpga


@pytest.mark.parametrize("rate", [0.0, 0.02])
def test_a_layer_is_exact_over_the_network(neighbour: SimulatedDdr3Board, tmp_path: Path, rate: float) -> None:
    """Also on a network that loses, repeats and damages frames."""
    fpga, seed = neighbour, random_seed()
    faults = PacketFaults(seed, rate)
    with SimulatedNetwork(fpga, BOARD.ethernet, faults) as network:
        with over_the_network(network, tmp_path) as device:
            layer = random_layer(SPECS["odd"], seed=2)
            x = torch.randn(3, layer.spec.hidden, generator=torch.Generator().manual_seed(seed))
            assert is_exact(device, layer, x)
        assert network.error is None and fpga.violation is None
    assert (faults.count > 0) == (rate > 0)


def test_a_window_of_writes_keeps_the_bridge_busy(
    neighbour: SimulatedDdr3Board, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it waits in the device: a byte in a cycle, but for what each request and its burst cost."""
    data = np.random.default_rng(random_seed()).integers(0, 256, WINDOW * LARGEST_COUNT, np.uint8)
    fpga = neighbour
    network = SimulatedNetwork(fpga, BOARD.ethernet)
    network.close()  # its frames alone are of use

    def request(sequence: int, opcode: Opcode, count: int, address: int, content: bytes = b"") -> bytes:
        frame = encode(HEADER.pack(sequence, opcode, count, address) + content)
        return network.datagram(whole_words(frame), 5000)

    fpga.run_network(10_000, [request(255, Opcode.HELLO, 0, 0)])
    pieces = [data[at : at + LARGEST_COUNT].tobytes() for at in range(0, data.size, LARGEST_COUNT)]
    before = fpga.cycles
    writes = [
        request(at, Opcode.MEMORY_WRITE, LARGEST_COUNT, LARGEST_COUNT * at, piece) for at, piece in enumerate(pieces)
    ]
    answers = fpga.run_network(100, writes)
    while len(answers) < WINDOW:
        answers += fpga.run_network(100, [])
        assert fpga.cycles < before + 20 * data.size
    share = data.size / (fpga.cycles - before)
    fpga.run_network(1000, [])  # what was answered may be on its way to the chip
    assert np.array_equal(fpga.memory[: data.size], data) and fpga.violation is None
    with capsys.disabled():
        print(f"\n{share:.2f} bytes of a window of writes in a cycle of the fabric")
    assert share > LEAST_BYTES_A_CYCLE


@pytest.mark.bench
def test_the_accelerator_of_the_preset_uses_the_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One token, so that weights are all that counts; they are put into the chip, as the line would take hours."""
    board = load_board("ecpix5-85f")
    arch = arch_of(board)
    fpga = SimulatedDdr3Board(board, arch, to_verilog(Accelerator(arch), ACCELERATOR), SIMULATED_BAUD)
    write = BridgedTransport.write

    def put(transport: BridgedTransport, address: int, data: np.ndarray) -> None:
        values = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if values.size <= LARGEST_LINE_BYTES:
            write(transport, address, values)
        else:
            fpga.memory[address : address + values.size] = values

    monkeypatch.setattr(BridgedTransport, "write", put)
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
