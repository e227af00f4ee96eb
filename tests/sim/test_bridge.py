"""The simulated bridge: how much of the line it uses, and that lines which are a little off work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from boards import load_board
from host.transports import open_transport
from moe_hw.bridge import BAUD
from moe_hw.fit import arch_of
from sim.bridge import SimulatedBridge
from sim.serial import PseudoTerminal

BOARD = load_board("ulx3s-85f")
ARCH = arch_of(BOARD)


@pytest.mark.parametrize("drift", [-0.02, 0.0, 0.02])
def test_bulk_transfers_fill_the_line(drift: float) -> None:
    """At the ULX3S' own clock and baud rate, through the driver; each end may be 2 % off the other."""
    size = 20_000
    data = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    board = SimulatedBridge(BOARD, ARCH, BAUD, drift)
    least = size * 10 * BOARD.clock_mhz * 1e6 / BAUD  # cycles of as many bytes on the line
    with PseudoTerminal(board) as terminal:
        transport = open_transport(f"serial:{terminal.path}?baud=300000")

        def share(transfer: Callable[[], object]) -> float:
            before = board.cycles
            transfer()
            return least / (board.cycles - before)

        writing = share(lambda: transport.write(4096, data)) / (1 + drift)
        reading = share(lambda: np.testing.assert_array_equal(transport.read(4096, size), data))
        transport.close()
    assert np.array_equal(board.memory[4096 : 4096 + size], data)
    assert board.violation is None
    board.close()
    print(f"of the line's bytes, {writing:.1%} are data when writing, {reading:.1%} when reading")
    assert writing > 0.94 and reading > 0.94
