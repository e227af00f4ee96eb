"""A line with a :class:`tests.moe_hw.peer.Peer` at its other end, as a port of the driver."""

from __future__ import annotations

import random
import time
from types import ModuleType
from typing import Any

import pytest

from host.transports import bridged
from moe_hw.bridge import Decoder, encode
from moe_hw.errors import DeviceError
from sim.serial import LineFaults
from tests.moe_hw.peer import Peer


class FakePort:
    """Bytes take their time: each look at the line moves a few of them.

    Attributes:
        unplugged: every access fails.
        deaf: nothing arrives any more.
        frames: that were sent.
        lost_frames, lost_answers: numbers of those that do not arrive.
        junk: bytes that arrive before all others.
    """

    name = "/dev/fake"
    bytes_per_second = 1e9

    def __init__(self, peer: Peer, seed: int = 0, rate: float = 0.0):
        self.peer = peer
        self.unplugged = self.deaf = False
        self.junk = b""
        self.frames = self._answers = 0
        self.lost_frames: set[int] = set()
        self.lost_answers: set[int] = set()
        self._random = random.Random(seed)
        self._faults = LineFaults(seed, rate)
        self._decoder = Decoder()
        self._out, self._in = bytearray(), bytearray()

    def read(self, wait: bool) -> bytes:
        self._check()
        if self.deaf:
            time.sleep(0.001 * wait)
            return b""
        moved = self._random.choice((0, 1, 100, 1000, 1 << 20)) if not wait else 1000
        arrived, self._out = self._out[:moved], self._out[moved:]
        for frame in self._decoder.feed(bytes(arrived)):
            self._answers += 1
            answer = encode(self.peer.answer(frame))
            if self._answers not in self.lost_answers:
                self._in += self._faults(answer)
        data, self._in = self.junk + self._in[:moved], self._in[moved:]
        self.junk = b""
        if wait and not data:
            time.sleep(0.0005)
        return bytes(data)

    def write(self, data: bytes) -> None:
        self._check()
        self.frames += 1
        if self.frames not in self.lost_frames:
            self._out += self._faults(data)

    def close(self) -> None:
        self.unplugged = True

    def _check(self) -> None:
        if self.unplugged:
            raise DeviceError(f"{self.name}: gone")


def what_is_opened(monkeypatch: pytest.MonkeyPatch, module: ModuleType, port: str) -> list[tuple[Any, ...]]:
    """Arguments of the class ``port`` of ``module``, board, sizes and progress, of each URL that would be opened."""
    calls: list[tuple[Any, ...]] = []

    class Port(FakePort):
        def __init__(self, *arguments: Any):
            super().__init__(Peer(bytearray(), []))
            calls.append(arguments)

    class Transport:
        def __init__(self, port: Any, board: Any, arch: Any, progress: Any):
            calls[-1] += (board, arch, progress)

    monkeypatch.setattr(module, port, Port)
    monkeypatch.setattr(bridged, "BridgedTransport", Transport)
    return calls
