"""A device behind a line, with a model of the bridge at its other end."""

from __future__ import annotations

import numpy as np
import pytest

from boards import load_board
from host.transports import bridged
from host.transports.bridged import BridgedTransport
from moe_hw.errors import DeviceError
from moe_hw.fit import arch_of
from moe_hw.registers import CSRS, csr_address
from tests.host.line import FakePort
from tests.moe_hw.peer import Peer

BOARD = load_board("ulx3s-85f")
ARCH = arch_of(BOARD)


def fake() -> tuple[BridgedTransport, FakePort]:
    port = FakePort(Peer(bytearray(1 << 20), [0] * len(CSRS)), 1)
    return BridgedTransport(port, BOARD, ARCH), port  # type: ignore[arg-type]


def test_every_access_reaches_the_device() -> None:
    transport, port = fake()
    data = np.arange(3000, dtype=np.uint16).reshape(2, 1500)
    transport.write(777, data[:, ::3])
    assert port.peer.memory[777 : 777 + 2000] == data[:, ::3].tobytes()
    assert transport.read(776, 2003).tobytes() == b"\0" + data[:, ::3].tobytes() + b"\0\0"
    assert transport.read(5, 0).size == 0
    transport.csr_write("tail", -1)
    assert transport.csr_read("tail") == 0xFFFFFFFF == port.peer.csrs[csr_address("tail") // 4]
    transport.reset()
    assert transport.csr_read("tail") == 0
    transport.close()
    assert port.unplugged


def test_figures_are_the_boards() -> None:
    transport, _ = fake()
    assert (transport.config_hash, transport.clock_mhz) == (ARCH.hash, 80.0)
    assert transport.memory_bytes == BOARD.memory.size_bytes
    assert transport.memory_bytes_per_cycle == pytest.approx(2 * 133 / 80)


@pytest.mark.parametrize(("address", "size"), [(-1, 1), (BOARD.memory.size_bytes, 1), (0, -1)])
def test_addresses_beyond_the_memory_are_refused(address: int, size: int) -> None:
    transport, _ = fake()
    with pytest.raises(DeviceError, match=f"got {size} bytes at {address:#x}"):
        transport.read(address, size)


def test_waiting_ends_with_the_head_or_with_the_cycles() -> None:
    transport, port = fake()
    port.peer.csrs[csr_address("head") // 4] = 7
    transport.wait(7, 1 << 40)
    before = port.peer.clock
    transport.wait(8, 100_000)
    assert 100_000 <= port.peer.clock - before <= 110_000
    port.peer.clock = (1 << 32) - 20_000  # the device's clock wraps
    transport.wait(8, 100_000)
    assert 80_000 <= port.peer.clock <= 90_000


def test_long_transfers_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridged, "_PROGRESS_SECONDS", 0.0)
    told: list[str] = []
    port = FakePort(Peer(bytearray(1 << 20), [0] * len(CSRS)))
    transport = BridgedTransport(port, BOARD, ARCH, told.append)  # type: ignore[arg-type]
    transport.write(0, np.zeros(200_000, np.uint8))
    transport.read(0, 200_000)
    assert told[0] == "writing device memory: 0.0 of 0.2 MB"
    assert told[-1] == "reading device memory: 0.2 of 0.2 MB"
