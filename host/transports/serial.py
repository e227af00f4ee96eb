"""A board at a serial port."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from typing import Any

from boards import DEFAULT_BOARD
from host.transports.bridged import BridgedTransport, connect, parse_target, whole_number
from moe_hw.bridge import BAUD
from moe_hw.errors import DeviceError

_POLL_SECONDS = 0.02
_WRITE_SECONDS = 5.0


class SerialPort:
    """A serial port, as a :class:`host.link.Port`.

    Parameters:
        path: the system's name of it.
        baud: bits per second.

    Raises:
        DeviceError: it is not there, is no serial port, another program has it, or it may not be opened.
    """

    def __init__(self, path: str, baud: int):
        import serial

        self.name = path
        self.bytes_per_second = baud / 10
        try:
            self._serial = serial.Serial(
                path, baud, timeout=_POLL_SECONDS, write_timeout=_WRITE_SECONDS, exclusive=True
            )
        except (OSError, ValueError) as error:
            raise DeviceError(_reason(path, baud, error)) from None
        # Not every system or driver has it; without it an FTDI chip keeps answers for up to 16 ms.
        with contextlib.suppress(OSError, ValueError, AttributeError, NotImplementedError):
            self._serial.set_low_latency_mode(True)

    def read(self, wait: bool) -> bytes:
        def arrived() -> bytes:
            first = self._serial.read(1) if wait else b""
            return first + self._serial.read(self._serial.in_waiting)

        return self._guarded(arrived)

    def write(self, data: bytes) -> None:
        self._guarded(lambda: self._serial.write(data))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # if it has gone away it is closed all the same
            self._serial.close()

    def _guarded(self, action: Callable[[], Any]) -> Any:
        import serial

        try:
            return action()
        except serial.SerialTimeoutException:
            raise DeviceError(
                f"{self.name}: expected the port to take bytes within {_WRITE_SECONDS:g} s, it did not; "
                "check cable and power of the board, and open it again"
            ) from None
        except (OSError, TypeError) as error:  # TypeError: pyserial, of a port that was closed
            raise DeviceError(
                f"{self.name}: expected an open port, it has gone away ({error}); plug the board in and open it again"
            ) from None


def open_serial(target: str, progress: Callable[[str], None] | None = None) -> BridgedTransport:
    """Connect to a board.

    Parameters:
        target: the port, and behind a ``?`` options joined by ``&``: ``board``, as of ``connect``, and ``baud``.
        progress: told how far long transfers are.

    Raises:
        UsageError: an unknown option or board.
        DeviceError: the port cannot be opened, or nobody answers there.
    """
    defaults = {"board": DEFAULT_BOARD, "baud": str(BAUD)}
    path, options = parse_target("serial", target, "a port, such as /dev/ttyUSB0,", defaults)
    baud = whole_number(f"serial:{target}", "baud", options["baud"])
    return connect(options["board"], lambda: SerialPort(path, baud), progress)


def _reason(path: str, baud: int, error: Exception) -> str:
    """Why a port could not be opened, and what to do."""
    from serial.tools.list_ports import comports

    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        others = ", ".join(sorted(port.device for port in comports())) or "none"
        return f"expected a serial port at {path}, there is none; plug the board in (ports of this machine: {others})"
    if number in (errno.EACCES, errno.EPERM):
        return f"{path}: expected permission to open it, got none; on Linux join the group of the port: dialout or uucp"
    if number in (errno.EAGAIN, errno.EBUSY):
        return f"{path}: expected to be its only user, another program has it open; end that one"
    if isinstance(error, ValueError):
        return f"{path}: expected a port that can do {baud} baud, got: {error}"
    return f"{path}: expected a serial port, got: {error}"
