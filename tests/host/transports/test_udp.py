"""A board in the network: what the URL means, and what goes through the socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from boards import load_board
from host.transports import open_transport, udp
from host.transports.udp import UdpPort
from moe_hw.bridge import UDP_PORT
from moe_hw.errors import DeviceError, UsageError
from moe_hw.fit import arch_of
from tests.host.line import what_is_opened

BOARD = load_board("ecpix5-85f")


@pytest.fixture
def board() -> Iterator[socket.socket]:
    """The far end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind(("127.0.0.1", 0))
        end.settimeout(5)
        yield end


@pytest.fixture
def port(board: socket.socket) -> Iterator[UdpPort]:
    opened = UdpPort("127.0.0.1", board.getsockname()[1], 1000)
    yield opened
    opened.close()


def test_a_write_is_a_datagram_of_whole_words(port: UdpPort, board: socket.socket) -> None:
    assert port.bytes_per_second == 125_000
    for data, padding in ((b"abcd", b""), (b"abcde", b"~~~"), (bytes(1050), b"~~")):
        port.write(data)
        assert board.recv(2000) == data + padding


def test_a_read_takes_all_that_has_arrived(port: UdpPort, board: socket.socket) -> None:
    assert port.read(False) == b""
    begun = time.monotonic()
    assert port.read(True) == b""
    assert time.monotonic() - begun < 1
    port.write(b"who?")
    _, host = board.recvfrom(100)
    for data in (b"one", b"two", b"three"):
        board.sendto(data, host)
    assert port.read(True) + port.read(False) == b"onetwothree"


def test_what_others_send_does_not_come_in(port: UdpPort, board: socket.socket) -> None:
    port.write(b"who?")
    _, host = board.recvfrom(100)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"me", host)
        board.sendto(b"you", host)
        assert port.read(True) == b"you"


def test_a_machine_on_which_nobody_listens() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        number = unused.getsockname()[1]
    with pytest.raises(DeviceError, match=f"127.0.0.1:{number}: expected a board there, .* check the address"):
        open_transport(f"udp:127.0.0.1:{number}?kbit=100000000")


@pytest.mark.parametrize("host", ["nobody.invalid", "300.1.2.3", "::1"])
def test_a_host_that_is_none(host: str) -> None:
    with pytest.raises(DeviceError, match=f"{host}:5: expected a host in this machine's network, got: "):
        UdpPort(host, 5, 1000)


def test_a_port_that_was_closed(port: UdpPort) -> None:
    port.close()
    port.close()
    for action in (lambda: port.read(True), lambda: port.write(b"data")):
        with pytest.raises(DeviceError, match="expected a way to the board, got: .*; check cable and network"):
            action()


# ---- the URL ----


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    return what_is_opened(monkeypatch, udp, "UdpPort")


def test_options_of_the_url(opened: list[tuple[Any, ...]]) -> None:
    other = load_board("ulx3s-85f")
    for target, expected in (
        ("192.168.1.50", ("192.168.1.50", UDP_PORT, 1_000_000, BOARD, arch_of(BOARD))),
        ("fpga.local:99?kbit=100", ("fpga.local", 99, 100, BOARD, arch_of(BOARD))),
        ("10.0.0.1?board=ulx3s-85f", ("10.0.0.1", UDP_PORT, 1_000_000, other, arch_of(other))),
    ):
        open_transport(f"udp:{target}", print)
        assert opened[-1] == (*expected, print)


@pytest.mark.parametrize(("target", "line"), [
    ("10.0.0.1?baud=1", "expected one of the options board, kbit, got 'baud'"),
    ("10.0.0.1?kbit=0", "kbit: expected a whole number above 0, got '0'"),
    ("10.0.0.1:http", "port: expected a whole number above 0, got 'http'"),
    ("10.0.0.1:65536", "expected HOST or HOST:PORT with a port below 65536, got '10.0.0.1:65536'"),
    (":99", "expected HOST or HOST:PORT"),
    ("10.0.0.1?board=ulx", "board: expected one of .*ulx3s-85f"),
    ("?board=ulx3s-85f", "expected an address, such as 192.168.1.50, before the options"),
])  # fmt: skip
def test_wrong_options_are_refused(target: str, line: str, opened: list[tuple[Any, ...]]) -> None:
    with pytest.raises(UsageError, match=line):
        open_transport(f"udp:{target}")
    assert opened == []
