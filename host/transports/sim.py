"""The simulated board as a device: the real Verilog under Verilator with a model of the board's memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from boards import Board, load_board
from host.transport import Transport
from moe_hw.arch import Arch
from moe_hw.fit import arch_of
from moe_hw.generated import names_generated, read_generated
from moe_hw.registers import csr_address
from sim.board import SimulatedBoard
from sim.build import build, prepare


class SimTransport(Transport):
    """A device in the simulator.

    Parameters:
        simulated: the running simulation; closed with the transport.
        arch: sizes of the accelerator it was built from.
        board: the board it stands for.
    """

    def __init__(self, simulated: SimulatedBoard, arch: Arch, board: Board):
        self.simulated = simulated
        self.arch = arch
        self.clock_mhz = board.clock_mhz
        self.memory_bytes = simulated.memory_bytes
        self.memory_bytes_per_cycle = board.memory_bytes_per_cycle

    def read(self, address: int, size: int) -> np.ndarray:
        return self.simulated.read(address, size)

    def write(self, address: int, data: np.ndarray) -> None:
        self.simulated.write(address, np.ascontiguousarray(data).reshape(-1).view(np.uint8))

    def csr_read(self, name: str) -> int:
        return self.simulated.csr_read(csr_address(name))

    def csr_write(self, name: str, value: int) -> None:
        self.simulated.csr_write(csr_address(name), value)

    def wait(self, until_head: int, max_cycles: int) -> None:
        # Run stops as soon as no command is pending.
        self.simulated.run(max_cycles)

    def reset(self) -> None:
        self.simulated.reset()

    def close(self) -> None:
        self.simulated.close()


def open_sim(target: str, progress: Callable[[str], None] | None = None) -> SimTransport:
    """Simulate a board.

    Parameters:
        target: a directory made by ``moe-hw generate``, or a board's name or YAML file: its accelerator is generated.
        progress: told what takes long; built simulators are kept.

    Raises:
        UsageError: there is no such directory or board.
        DeviceError: the directory's files changed since they were generated.
        SetupError: the simulator could not be built.
    """
    if names_generated(target):
        generated = read_generated(Path(target))
        return _simulate(generated.board, generated.arch, generated.verilog, progress)
    return open_board(load_board(target), progress)


def open_board(board: Board, progress: Callable[[str], None] | None = None) -> SimTransport:
    """Generate the accelerator of a board and simulate both.

    Raises:
        UsageError: a size of its accelerator cannot be built.
        SetupError: the simulator could not be built.
    """
    arch = arch_of(board)
    prepare()
    from rtl_gen.accelerator import Accelerator
    from rtl_gen.emit import to_verilog

    return _simulate(board, arch, to_verilog(Accelerator(arch), "moe_hw"), progress)


def _simulate(board: Board, arch: Arch, verilog: str, progress: Callable[[str], None] | None) -> SimTransport:
    return SimTransport(SimulatedBoard(build(verilog, arch, progress), arch, board), arch, board)
