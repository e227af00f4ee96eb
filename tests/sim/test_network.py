"""The network of one board, with a device that keeps what it gets and sends what it is told to."""

from __future__ import annotations

import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence

import pytest

from boards import Ethernet
from moe_hw.bridge import UDP_PORT
from sim.network import BROADCAST, HOST_MAC, PREAMBLE, PacketFaults, SimulatedNetwork
from sim.serial import QUIET_CYCLES

STATION = Ethernet("02:00:00:00:00:01", "10.1.2.3")
MAC = bytes.fromhex("020000000001")
BOARD, HOST = bytes([10, 1, 2, 3]), bytes([10, 1, 2, 4])


class Recorder:
    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.to_send: list[bytes] = []
        self.cycles = 0
        self.network_quiet = QUIET_CYCLES

    def run_network(self, cycles: int, sent: Sequence[bytes]) -> list[bytes]:
        self.cycles += cycles
        self.got += sent
        out, self.to_send = self.to_send, []
        return out


@pytest.fixture
def device() -> Recorder:
    return Recorder()


@pytest.fixture
def network(device: Recorder) -> Iterator[SimulatedNetwork]:
    with SimulatedNetwork(device, STATION) as opened:
        yield opened
        assert opened.error is None


@pytest.fixture
def host(network: SimulatedNetwork) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.connect(("127.0.0.1", int(network.url.rpartition(":")[2])))
        end.settimeout(5)
        yield end


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def framed(body: bytes) -> bytes:
    return PREAMBLE + body + zlib.crc32(body).to_bytes(4, "little")


def checksum(data: bytes) -> int:
    """RFC 1071: of a header whose own sum is right, 0xffff."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def datagram(data: bytes, port: int, to: bytes = HOST_MAC) -> bytes:
    """A frame of the board, padded as LiteEth does."""
    udp = struct.pack(">4H", UDP_PORT, port, 8 + len(data), 0) + data
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0, BOARD, HOST)
    total = 0xFFFF - checksum(header)
    header = header[:10] + struct.pack(">H", total) + header[12:]
    return framed((to + MAC + b"\x08\x00" + header + udp).ljust(60, b"\0"))


@pytest.mark.parametrize("size", [1, 18, 19, 1000])
def test_what_a_program_sends_is_a_frame(device: Recorder, host: socket.socket, size: int) -> None:
    data = bytes(range(251)) * 4
    host.send(data[:size])
    until(lambda: device.got)
    frame = device.got[0]
    body = frame[len(PREAMBLE) : -4]
    assert framed(body) == frame and len(body) == max(60, 14 + 20 + 8 + size)
    assert body[:14] == MAC + HOST_MAC + b"\x08\x00"
    header, udp = body[14:34], body[34:]
    assert checksum(header) == 0xFFFF and header[9] == 17 and header[12:] == HOST + BOARD
    assert struct.unpack(">3H", udp[:6]) == (host.getsockname()[1], UDP_PORT, 8 + size)
    assert udp[8 : 8 + size] == data[:size]


def test_what_the_board_sends_reaches_the_program(device: Recorder, host: socket.socket) -> None:
    port = host.getsockname()[1]
    good = datagram(b"good", port)
    damaged = bytearray(good)
    damaged[60] ^= 1
    device.to_send = [bytes(damaged), good[:30], datagram(b"another's", port, MAC), b"\x55" + good, good]
    host.send(b"x")
    assert host.recv(100) == b"good"
    device.to_send = [datagram(b"long" * 300, port, BROADCAST)]
    host.send(b"x")
    assert host.recv(2000) == b"long" * 300


def test_the_board_asks_for_the_hosts_station(
    device: Recorder, network: SimulatedNetwork, host: socket.socket
) -> None:
    def question(address: bytes) -> bytes:
        arp = struct.pack(">HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, MAC, BOARD, bytes(6), address)
        return framed((BROADCAST + MAC + b"\x08\x06" + arp).ljust(60, b"\0"))

    device.to_send = [question(bytes([10, 1, 2, 9])), question(HOST)]
    host.send(b"x")
    until(lambda: len(device.got) == 2)
    arp = struct.pack(">HHBBH6s4s6s4s", 1, 0x800, 6, 4, 2, HOST_MAC, HOST, MAC, BOARD)
    assert device.got[1] == framed((MAC + HOST_MAC + b"\x08\x06" + arp).ljust(60, b"\0"))
    assert network.asked == 1


def test_time_stands_still_while_the_cable_is_quiet(device: Recorder, network: SimulatedNetwork) -> None:
    time.sleep(0.2)
    assert device.cycles == 0
    network.ping(b"hello")
    until(lambda: device.got)
    assert b"hello" in device.got[0] and network.echoes == []


def test_faults_are_those_of_the_seed() -> None:
    frames = [framed(bytes([number]) * 60) for number in range(200)]
    assert PacketFaults(1, 0)(frames) == frames
    faults = PacketFaults(1, 0.3)
    arrived = faults(frames)
    assert arrived == PacketFaults(1, 0.3)(frames) != PacketFaults(2, 0.3)(frames)
    assert 30 < faults.count < 90
    assert {frames.count(frame) for frame in arrived} == {0, 1}
    assert {arrived.count(frame) for frame in frames} == {0, 1, 2}
