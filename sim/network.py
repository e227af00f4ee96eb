"""A local network with one board in it: its datagrams are those of a socket of this machine."""

from __future__ import annotations

import binascii
import ipaddress
import select
import socket
from collections.abc import Sequence
from typing import Protocol

import dpkt

from boards import Ethernet
from moe_hw.bridge import UDP_PORT
from sim.serial import ANSWERED_CYCLES, QUIET_CYCLES, FarEnd, Faults

SLICE = 1000
"""Cycles between two looks at the socket."""

HOST_MAC = bytes.fromhex("020000000002")
BROADCAST = b"\xff" * 6
PREAMBLE = b"\x55" * 7 + b"\xd5"
SHORTEST = 60
"""Bytes of a frame without its check sequence, IEEE 802.3."""

UDP_HEADER_BYTES = 8

_LARGEST = 1 << 16


class NetworkDevice(Protocol):
    """A simulated device with a cable, on which frames are from the preamble to the check sequence."""

    def run_network(self, cycles: int, sent: Sequence[bytes]) -> list[bytes]:
        """Send frames, let ``cycles`` of the fabric pass, and return the frames received."""

    @property
    def network_quiet(self) -> int:
        """Clocks since the last byte on the cable; 0 while some wait."""


class PacketFaults(Faults):
    """Loses, repeats, damages and cuts frames."""

    def __call__(self, frames: list[bytes]) -> list[bytes]:
        """``frames`` as they arrive."""
        return list(self._strike(frames, self._damage))

    def _damage(self, frame: bytes) -> list[bytes]:
        damaged = bytearray(frame)
        damaged[self._random.randrange(len(PREAMBLE), len(frame))] ^= 1 << self._random.randrange(8)
        return self._random.choice(([], [frame, frame], [bytes(damaged)], [frame[: len(frame) // 2]]))


class SimulatedNetwork(FarEnd):
    """A socket on this machine in place of the board's address.

    Parameters:
        device: the board; used by no one else while this is open.
        station: its place in the network.
        faults: what happens to frames, in both directions.

    Attributes:
        url: of the board, for ``open_device``, without options.
        asked: times that the board has asked for the host's station.
        echoes: what pings have brought back.
    """

    def __init__(self, device: NetworkDevice, station: Ethernet, faults: PacketFaults | None = None):
        self._device = device
        self._mac = bytes.fromhex(station.mac.replace(":", ""))
        self._address = ipaddress.IPv4Address(station.address)
        self._host = self._address + 1  # in the same subnet
        self._faults = faults or PacketFaults(0, 0)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._answers: list[bytes] = []  # of the host to the board, whatever the driver does
        self.asked = 0
        self.echoes: list[bytes] = []
        self.url = f"udp:127.0.0.1:{self._socket.getsockname()[1]}"
        super().__init__(f"network of {station.address}")

    def datagram(self, data: bytes, port: int) -> bytes:
        """The frame that brings ``data`` from the host's ``port`` to the board."""
        datagram = dpkt.udp.UDP(sport=port, dport=UDP_PORT, data=data, ulen=UDP_HEADER_BYTES + len(data))
        return self._packet(dpkt.ip.IP_PROTO_UDP, datagram)

    def ping(self, data: bytes) -> None:
        """Ask the board for an echo of ``data``; called before anything is sent to it."""
        echo = dpkt.icmp.ICMP(type=dpkt.icmp.ICMP_ECHO, data=dpkt.icmp.ICMP.Echo(id=1, seq=1, data=data))
        self._answers.append(self._packet(dpkt.ip.IP_PROTO_ICMP, echo))

    def _step(self) -> None:
        active = self._answers or self._device.network_quiet < QUIET_CYCLES
        readable, _, _ = select.select([self._socket], [], [], self._patience(active))
        if readable:
            data, (_, port) = self._socket.recvfrom(_LARGEST)
            self._answers.append(self.datagram(data, port))
        if self._answers or active:
            sent, self._answers = self._answers, []
            frames = self._device.run_network(SLICE, self._faults(sent))
            self._answered = frames != [] and self._device.network_quiet > ANSWERED_CYCLES
            for frame in self._faults(frames):
                self._take(frame)

    def _release(self) -> None:
        self._socket.close()

    def _packet(self, protocol: int, data: dpkt.Packet) -> bytes:
        packet = dpkt.ip.IP(src=self._host.packed, dst=self._address.packed, p=protocol, ttl=64, data=data)
        return self._frame(self._mac, dpkt.ethernet.ETH_TYPE_IP, packet)

    def _frame(self, to: bytes, kind: int, data: dpkt.Packet) -> bytes:
        frame = bytes(dpkt.ethernet.Ethernet(dst=to, src=HOST_MAC, type=kind, data=data)).ljust(SHORTEST, b"\0")
        return PREAMBLE + frame + binascii.crc32(frame).to_bytes(4, "little")

    def _take(self, frame: bytes) -> None:
        """What the host does with a frame of the board; a damaged one is dropped, as its network card would."""
        body, check = frame[len(PREAMBLE) : -4], frame[-4:]
        if frame[: len(PREAMBLE)] != PREAMBLE or binascii.crc32(body).to_bytes(4, "little") != check:
            return
        ethernet = dpkt.ethernet.Ethernet(body)
        if ethernet.dst not in (HOST_MAC, BROADCAST):
            return
        if isinstance(ethernet.data, dpkt.arp.ARP):
            self._resolve(ethernet.data)
        elif isinstance(ethernet.data, dpkt.ip.IP):
            inner = ethernet.data.data
            if isinstance(inner, dpkt.udp.UDP):
                self._socket.sendto(inner.data, ("127.0.0.1", inner.dport))
            elif isinstance(inner, dpkt.icmp.ICMP) and inner.type == dpkt.icmp.ICMP_ECHOREPLY:
                self.echoes.append(bytes(inner.data.data))

    def _resolve(self, question: dpkt.arp.ARP) -> None:
        if question.op == dpkt.arp.ARP_OP_REQUEST and question.tpa == self._host.packed:
            self.asked += 1
            answer = dpkt.arp.ARP(
                op=dpkt.arp.ARP_OP_REPLY, sha=HOST_MAC, spa=self._host.packed, tha=question.sha, tpa=question.spa
            )
            self._answers.append(self._frame(question.sha, dpkt.ethernet.ETH_TYPE_ARP, answer))
