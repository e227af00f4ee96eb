"""The pseudo-terminal and its faults, with a device that sends back what it gets."""

from __future__ import annotations

import os
import time

import pytest
import serial

from sim.serial import QUIET_CYCLES, SLICE, LineFaults, PseudoTerminal


class Echo:
    """Sends every byte back one slice later."""

    def __init__(self) -> None:
        self.cycles = 0
        self.quiet = QUIET_CYCLES
        self._waiting = b""
        self.fails = False

    def run_line(self, cycles: int, sent: bytes) -> bytes:
        if self.fails:
            raise RuntimeError("a defect")
        self.cycles += cycles
        self.quiet = 0 if sent or self._waiting else self.quiet + cycles
        answer, self._waiting = self._waiting, sent
        return answer


def read(port: serial.Serial, count: int) -> bytes:
    port.timeout = 5
    return port.read(count)


def test_bytes_pass_in_both_directions_and_a_port_is_opened_again() -> None:
    every = bytes(range(256)) * 50
    with PseudoTerminal(Echo()) as terminal:
        for _ in range(2):
            with serial.Serial(terminal.path, 3_000_000, exclusive=True) as port:
                port.write(every)
                assert read(port, len(every)) == every
        assert terminal.error is None


def test_time_stands_still_while_the_line_is_quiet() -> None:
    echo = Echo()
    with PseudoTerminal(echo) as terminal:
        time.sleep(0.2)
        assert echo.cycles == 0
        with serial.Serial(terminal.path) as port:
            port.write(b"x")
            assert read(port, 1) == b"x"
            time.sleep(0.3)
    assert QUIET_CYCLES <= echo.cycles <= QUIET_CYCLES + 5 * SLICE


def test_close_unplugs_and_a_defect_is_kept() -> None:
    echo = Echo()
    terminal = PseudoTerminal(echo)
    with serial.Serial(terminal.path, timeout=1) as port:
        terminal.close()
        terminal.close()
        with pytest.raises(OSError):
            port.read(1)
    echo.fails = True
    with PseudoTerminal(echo) as terminal:
        with serial.Serial(terminal.path) as port:
            port.write(b"x")
            time.sleep(0.3)
        assert isinstance(terminal.error, RuntimeError)
    assert not os.path.exists(terminal.path)


def test_faults_come_back_with_their_seed() -> None:
    data = bytes(range(256)) * 40
    assert LineFaults(1, 0.0)(data) == data
    disturbed = [LineFaults(seed, 0.01)(data) for seed in (1, 1, 2)]
    assert disturbed[0] == disturbed[1] != disturbed[2]
    faults = LineFaults(3, 0.1)
    parts = [faults(data[at : at + 7]) for at in range(0, len(data), 7)]
    assert b"".join(parts) == LineFaults(3, 0.1)(data)
    assert 0.08 < faults.count / len(data) < 0.12
    # All four kinds: shorter, longer, and of the same length.
    kinds = {len(LineFaults(seed, 1.0)(b"a")) for seed in range(50)}
    assert kinds == {0, 1, 2}
