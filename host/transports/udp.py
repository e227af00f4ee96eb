"""A board in the local network."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from host.transports.bridged import BridgedTransport, connect, parse_target, whole_number
from moe_hw.bridge import UDP_PORT, whole_words
from moe_hw.errors import DeviceError, UsageError

NETWORK_BOARD = "ecpix5-85f"
"""The board that a network address means without the option ``board``."""

KBIT = 1_000_000
"""Thousands of bits per second on the line."""

_POLL_SECONDS = 0.02
_LARGEST_DATAGRAM = 1 << 16


class UdpPort:
    """Datagrams to and from one board, as a :class:`host.link.Port`.

    Parameters:
        host, port: where the board is.
        kbit: thousands of bits per second that the line carries.

    Raises:
        DeviceError: there is no such host, or no way to it.
    """

    def __init__(self, host: str, port: int, kbit: int):
        self.name = f"{host}:{port}"
        self.bytes_per_second = kbit * 1e3 / 8
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            # Connected, so that nothing comes in but from there.
            self._socket.connect((host, port))
        except OSError as error:
            self._socket.close()
            raise DeviceError(
                f"{self.name}: expected a host in this machine's network, got: {error.strerror or error}; "
                "the address is that of the board's file, and this machine needs one of the same subnet"
            ) from None
        self._socket.settimeout(_POLL_SECONDS)

    def read(self, wait: bool) -> bytes:
        """What has arrived, of all datagrams."""
        data = b""
        while True:
            try:
                flags = socket.MSG_DONTWAIT if data or not wait else 0
                data += self._socket.recv(_LARGEST_DATAGRAM, flags)
            except (BlockingIOError, TimeoutError):
                return data
            except OSError as error:
                raise self._failure(error) from None

    def write(self, data: bytes) -> None:
        """One datagram, of whole words."""
        try:
            self._socket.send(whole_words(data))
        except OSError as error:
            raise self._failure(error) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()

    def _failure(self, error: OSError) -> DeviceError:
        if isinstance(error, ConnectionRefusedError):
            return DeviceError(
                f"{self.name}: expected a board there, got the answer of a machine on which nobody listens at this "
                "port; check the address"
            )
        return DeviceError(
            f"{self.name}: expected a way to the board, got: {error.strerror or error}; check cable and network, "
            "and open it again"
        )


def open_udp(target: str, progress: Callable[[str], None] | None = None) -> BridgedTransport:
    """Connect to a board.

    Parameters:
        target: ``HOST`` or ``HOST:PORT``, and behind a ``?`` options joined by ``&``: ``board``, as of ``connect``, and
            ``kbit``.
        progress: told how far long transfers are.

    Raises:
        UsageError: an unknown option or board, or no port's number.
        DeviceError: there is no way to the host, or nobody answers there.
    """
    defaults = {"board": NETWORK_BOARD, "kbit": str(KBIT)}
    place, options = parse_target("udp", target, "an address, such as 192.168.1.50,", defaults)
    host, _, number = place.partition(":")
    port = whole_number(f"udp:{target}", "port", number) if number else UDP_PORT
    if not host or port >= 1 << 16:
        raise UsageError(f"udp:{target}: expected HOST or HOST:PORT with a port below 65536, got {place!r}")
    kbit = whole_number(f"udp:{target}", "kbit", options["kbit"])
    return connect(options["board"], lambda: UdpPort(host, port, kbit), progress)
