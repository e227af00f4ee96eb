"""A board at a serial port: what the URL means, what the port may do, and the real bridge at simulated pins."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boards import load_board
from host import link
from host.driver import open_device
from host.transports import open_transport, serial
from host.transports.bridged import BridgedTransport
from host.transports.serial import SerialPort
from moe_hw.arch import Arch
from moe_hw.bridge import Opcode
from moe_hw.errors import DeviceError, DeviceTimeout, UsageError
from moe_hw.fit import arch_of
from moe_hw.generated import write_generated
from moe_hw.registers import CSRS, DEVICE_MAGIC
from sim.bench.runner import random_seed
from sim.bridge import SimulatedBridge
from sim.serial import LineFaults, PseudoTerminal
from tests.host.line import what_is_opened

BOARD = load_board("ulx3s-85f")
ARCH = arch_of(BOARD)
SIMULATED_BAUD = 10_000_000
"""Of the simulated line: eight clocks a bit, for speed."""

PACE = 1_000_000
"""What the driver is told of it: the simulation is slower than the line."""


# ---- the URL ----


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    return what_is_opened(monkeypatch, serial, "SerialPort")


def test_options_of_the_url(opened: list[tuple[Any, ...]], tmp_path: Path) -> None:
    small = Arch(columns=4, max_tokens=8)
    write_generated(tmp_path / "out", BOARD, small, "module moe_hw; endmodule", {}, {})
    other = load_board("ecpix5-85f")
    for target, expected in (
        ("/dev/ttyUSB0", ("/dev/ttyUSB0", 3_000_000, BOARD, ARCH)),
        ("COM3?baud=115200", ("COM3", 115200, BOARD, ARCH)),
        ("/dev/x?board=ecpix5-85f&baud=9600", ("/dev/x", 9600, other, arch_of(other))),
        (f"/dev/x?board={tmp_path}/out", ("/dev/x", 3_000_000, BOARD, small)),
    ):
        open_transport(f"serial:{target}", print)
        assert opened[-1] == (*expected, print)


@pytest.mark.parametrize(("target", "line"), [
    ("/dev/x?bord=a", "expected one of the options board, baud, got 'bord'"),
    ("/dev/x?baud=fast", "baud: expected a whole number above 0, got 'fast'"),
    ("/dev/x?baud=0", "baud: expected a whole number above 0, got '0'"),
    ("/dev/x?board=ulx", "board: expected one of .*ulx3s-85f"),
    ("/dev/x?board=./nothing", "expected a directory made by `moe-hw generate`"),
    ("?board=ulx3s-85f", "expected a port, such as .*, before the options"),
])  # fmt: skip
def test_wrong_options_are_refused(target: str, line: str, opened: list[tuple[Any, ...]]) -> None:
    with pytest.raises(UsageError, match=line):
        open_transport(f"serial:{target}")
    assert opened == []


# ---- the port ----


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """The other side of a serial port, and its name."""
    line, port = os.openpty()
    tty.setraw(port)
    yield line, os.ttyname(port)
    for descriptor in (line, port):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_bytes_pass(terminal: tuple[int, str]) -> None:
    line, path = terminal
    port = SerialPort(path, 3_000_000)
    assert port.bytes_per_second == 300_000
    every = bytes(range(256))  # none means anything to the terminal
    port.write(every)
    assert os.read(line, 1000) == every
    assert port.read(False) == b""
    os.write(line, every)
    found = b""
    while len(found) < len(every):
        found += port.read(True)
    assert found == every
    begun = time.monotonic()
    assert port.read(True) == b""
    assert time.monotonic() - begun < 1
    port.close()


def test_a_port_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="expected a serial port at .*/none, there is none; plug the board in"):
        SerialPort(str(tmp_path / "none"), 3_000_000)


def test_a_file_is_no_port(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="file: expected a serial port, got: "):
        SerialPort(str(tmp_path / "file"), 3_000_000)


def test_a_port_that_another_has_open(terminal: tuple[int, str]) -> None:
    first = SerialPort(terminal[1], 3_000_000)
    with pytest.raises(DeviceError, match="expected to be its only user, another program has it open; end that one"):
        SerialPort(terminal[1], 3_000_000)
    first.close()
    SerialPort(terminal[1], 3_000_000).close()


def test_a_port_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("serial.Serial", refuse)
    with pytest.raises(DeviceError, match="/dev/x: expected permission to open it, got none; on Linux join the group"):
        SerialPort("/dev/x", 3_000_000)


def test_a_rate_that_the_port_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Invalid baud rate: 5")

    monkeypatch.setattr("serial.Serial", refuse)
    with pytest.raises(DeviceError, match="/dev/x: expected a port that can do 5 baud, got: Invalid baud rate"):
        SerialPort("/dev/x", 5)


def test_a_port_that_takes_nothing(terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial, "_WRITE_SECONDS", 0.05)
    port = SerialPort(terminal[1], 3_000_000)
    with pytest.raises(DeviceError, match="expected the port to take bytes within 0.05 s, it did not; check cable"):
        port.write(bytes(1 << 20))
    port.close()


def test_a_port_that_goes_away(terminal: tuple[int, str]) -> None:
    line, path = terminal
    port = SerialPort(path, 3_000_000)
    os.close(line)
    for access in (lambda: port.read(True), lambda: port.read(False), lambda: port.write(b"x")):
        with pytest.raises(DeviceError, match="expected an open port, it has gone away .*; plug the board in"):
            access()
    port.close()
    port.close()


def test_nobody_at_the_other_end(terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "ATTEMPTS", 2)
    with pytest.raises(DeviceError, match="expected the answer of a moe-hw bridge, got nothing; check power and cable"):
        open_device(f"serial:{terminal[1]}")
    SerialPort(terminal[1], 9600).close()  # it was closed


# ---- the bridge at its pins ----


@pytest.fixture(scope="module")
def simulated() -> Iterator[SimulatedBridge]:
    board = SimulatedBridge(BOARD, ARCH, SIMULATED_BAUD)
    yield board
    assert board.violation is None
    board.close()


@pytest.mark.parametrize("rate", [0.0, 0.0005])
def test_the_bridge_does_what_a_model_does(simulated: SimulatedBridge, rate: float) -> None:
    """Writes, reads and CSRs in any order; on the disturbed line also each of them just once."""
    seed = random_seed()
    print(f"COCOTB_RANDOM_SEED={seed}")
    generator = random.Random(seed)
    simulated.memory[:] = 0
    simulated.set_stall(seed, 0.3)
    memory = np.zeros(1 << 14, np.uint8)
    csrs = {csr.name: 0 for csr in CSRS if csr.access == "rw" and csr.name != "tail"}
    faults = LineFaults(seed, rate)
    with PseudoTerminal(simulated, faults) as terminal:
        transport = open_transport(f"serial:{terminal.path}?baud={PACE}")
        transport.reset()
        for _ in range(60):
            address, size = generator.randrange(1 << 14), generator.choice((1, 5, 100, 2000))
            size = min(size, (1 << 14) - address)
            action = generator.randrange(4)
            if action == 0:
                memory[address : address + size] = data = np.frombuffer(generator.randbytes(size), np.uint8)
                transport.write(address, data)
            elif action == 1:
                assert np.array_equal(transport.read(address, size), memory[address : address + size])
            elif action == 2:
                name, value = generator.choice(list(csrs)), generator.getrandbits(32)
                csrs[name] = value
                transport.csr_write(name, value)
            else:
                name = generator.choice(list(csrs))
                assert transport.csr_read(name) == csrs[name]
        assert transport.csr_read("magic") == DEVICE_MAGIC
        transport.close()
        assert terminal.error is None
    assert np.array_equal(simulated.memory[: 1 << 14], memory)
    assert (faults.count > 0) == (rate > 0)
    simulated.set_stall(0, 0)


def test_a_device_is_opened_and_waits_for_commands(simulated: SimulatedBridge) -> None:
    with PseudoTerminal(simulated) as terminal, open_device(f"serial:{terminal.path}?baud={PACE}") as device:
        transport = device.transport
        head = transport.csr_read("head")
        transport.csr_write("tail", head + 3)
        transport.wait(head + 3, 1_000_000)
        assert transport.csr_read("head") == head + 3
        transport.csr_write("tail", head + 1000)
        transport.wait(head + 1000, 20_000)
        assert transport.csr_read("head") != head + 1000


def test_the_bitstream_of_another_board_is_refused(simulated: SimulatedBridge) -> None:
    with PseudoTerminal(simulated) as terminal:
        expected = "expected the device's configuration hash .*; use the bitstream of this board"
        with pytest.raises(DeviceError, match=expected):
            open_device(f"serial:{terminal.path}?board=ecpix5-85f&baud={PACE}")
        SerialPort(terminal.path, PACE).close()


def test_errors_of_memory_reach_the_driver(simulated: SimulatedBridge) -> None:
    with PseudoTerminal(simulated) as terminal:
        transport = open_transport(f"serial:{terminal.path}?baud={PACE}")
        simulated.add_fault("read", 700, 4)
        simulated.add_fault("write", 1000, 4)
        with pytest.raises(DeviceError, match="reading 512 bytes at 0x200: expected OK, got SLVERR; check the address"):
            transport.read(0, 2000)
        with pytest.raises(DeviceError, match="writing 512 bytes at 0x200: expected OK, got SLVERR"):
            transport.write(0, np.zeros(4000, np.uint8))
        simulated.clear_faults()
        simulated.set_dead()
        with pytest.raises(DeviceTimeout, match="reading 8 bytes at 0x0: expected an answer within 65,536 cycles"):
            transport.read(0, 8)
        simulated.set_dead(False)
        transport.write(0, np.arange(8, dtype=np.uint8))
        assert transport.read(0, 8).tolist() == list(range(8))
        transport.close()


@pytest.mark.parametrize("writes", [False, True])
def test_unplugged_in_the_middle(simulated: SimulatedBridge, writes: bool) -> None:
    terminal = PseudoTerminal(simulated)
    transport = open_transport(f"serial:{terminal.path}?baud={PACE}")
    unplugging = threading.Timer(0.3, terminal.close)
    unplugging.start()
    begun = time.monotonic()
    with pytest.raises(DeviceError, match="expected an open port, it has gone away|expected the port to take bytes"):
        if writes:
            transport.write(0, np.zeros(1 << 20, np.uint8))
        else:
            transport.read(0, 1 << 20)
    assert time.monotonic() - begun < 10
    unplugging.join()
    transport.close()
    # Plugged in again: what was left of the last session is none of this one's.
    with PseudoTerminal(simulated) as terminal:
        transport = open_transport(f"serial:{terminal.path}?baud={PACE}")
        transport.write(64, np.arange(700, dtype=np.uint16))
        assert transport.read(64, 1400).tobytes() == np.arange(700, dtype=np.uint16).tobytes()
        transport.close()


def test_a_program_that_follows_one_that_was_killed(simulated: SimulatedBridge) -> None:
    """Half a frame and answers to nobody are in the line when the next one opens it."""
    with PseudoTerminal(simulated) as terminal:
        first = open_transport(f"serial:{terminal.path}?baud={PACE}")
        assert isinstance(first, BridgedTransport)
        link_ = first._link
        for address in range(10):
            link_._send(link.Request(Opcode.MEMORY_READ, "a read", address, 300, b"", 300))
        first._port.write(b"\x7e\x05\x07half a frame")
        first.close()
        second = open_transport(f"serial:{terminal.path}?baud={PACE}")
        assert second.csr_read("magic") == DEVICE_MAGIC
        second.close()
