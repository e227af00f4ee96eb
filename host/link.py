"""The host's side of the bridge's protocol (``docs/bridge.md``): a window of requests, each done exactly once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from moe_hw.bridge import (
    GREETING,
    HEADER,
    LARGEST_COUNT,
    MAX_FRAME_BYTES,
    SEQUENCES,
    TIMEOUT_CYCLES,
    VERSION,
    WINDOW,
    Decoder,
    Opcode,
    Status,
    encode,
)
from moe_hw.errors import DeviceError, DeviceTimeout

ATTEMPTS = 8
"""Times that all is sent again before the device is given up."""

_REACTION_SECONDS = 0.1
"""What driver, USB and a busy host may take to bring an answer."""


class Port(Protocol):
    """A line that bytes come from and go to.

    Attributes:
        name: what errors call it.
        bytes_per_second: what it carries in each direction.
    """

    name: str
    bytes_per_second: float

    def read(self, wait: bool) -> bytes:
        """What has arrived; if there is nothing and ``wait``, what arrives within a few hundredths of a second."""

    def write(self, data: bytes) -> None:
        """Send ``data``; returns when it has been taken."""

    def close(self) -> None:
        """Release the line."""


@dataclass(frozen=True)
class Request:
    """One request; ``answer_bytes`` of data are expected, ``what`` is for errors."""

    opcode: Opcode
    what: str
    address: int = 0
    count: int = 0
    data: bytes = b""
    answer_bytes: int = 0


@dataclass
class _Pending:
    """A request without an answer: its frame, and the numbers of its first and last sending."""

    request: Request
    frame: bytes
    first: int
    last: int


class Link:
    """A session with a bridge.

    Parameters:
        port: the line; closed by whoever opened it.

    Attributes:
        largest_count: bytes of a memory access, and the boundary that it does not cross.

    Raises:
        DeviceError: nobody answers, another device does, or the port fails.
    """

    def __init__(self, port: Port):
        self._port = port
        self._decoder = Decoder()
        self._pending: dict[int, _Pending] = {}
        self._next = 0
        self._sendings = 0
        self._gone_back: int | None = None
        self._patience = _REACTION_SECONDS + 2 * WINDOW * MAX_FRAME_BYTES / port.bytes_per_second
        self._silent = self._damaged = 0
        self._deadline = 0.0
        self._window = 1
        self._lost: DeviceError | None = None
        self.largest_count = LARGEST_COUNT
        self._greet()

    def exchange(self, requests: Iterable[Request], take: Callable[[Request, bytes], None] | None = None) -> None:
        """Have requests done in their order, several of them under way at a time.

        Parameters:
            requests: drawn as there is room in the window; none is drawn after an error.
            take: called once with each request and the data of its answer, not always in order.

        Raises:
            DeviceTimeout: memory or CSRs did not answer.
            DeviceError: an error was answered, or the device does not answer.
        """
        if self._lost is not None:
            raise DeviceError(str(self._lost))
        if self._pending:  # of an exchange that was interrupted
            self._greet()
        try:
            failure = self._exchange(iter(requests), take)
        except DeviceError as error:
            self._lost = error
            raise
        if failure is not None:
            raise failure

    def _exchange(self, source: Iterator[Request], take: Callable[[Request, bytes], None] | None) -> DeviceError | None:
        failure: DeviceError | None = None
        more = True
        while more or self._pending:
            while more and self._has_room():
                request = next(source, None) if failure is None else None
                if request is None:
                    more = False
                else:
                    self._send(request)
                    answered = self._receive(False, take)
                    failure = failure or answered
            if self._pending:
                answered = self._receive(True, take)
                failure = failure or answered
        return failure

    def _has_room(self) -> bool:
        return not self._pending or (self._next - next(iter(self._pending))) % SEQUENCES < self._window

    def _send(self, request: Request) -> None:
        header = HEADER.pack(self._next, request.opcode, request.count, request.address)
        if not self._pending:
            self._hear()
        self._pending[self._next] = _Pending(request, encode(header + request.data), self._sendings, self._sendings)
        self._transmit(self._pending[self._next])
        self._next = (self._next + 1) % SEQUENCES

    def _transmit(self, pending: _Pending) -> None:
        pending.last = self._sendings
        self._sendings += 1
        self._port.write(pending.frame)

    def _hear(self) -> None:
        """There was a new answer, or the first request after a pause."""
        self._silent = self._damaged = 0
        self._deadline = time.monotonic() + self._patience

    def _receive(self, wait: bool, take: Callable[[Request, bytes], None] | None) -> DeviceError | None:
        """Work on what has arrived; the first error that was answered."""
        failure = None
        for content in self._decoder.feed(self._port.read(wait)):
            if content is None or len(content) < 2:
                self._damaged += 1
            else:
                answered = self._answer(content[0], content[1:-1], content[-1], take)
                failure = failure or answered
        if self._pending and time.monotonic() > self._deadline:
            self._repeat_all()
        return failure

    def _answer(
        self, sequence: int, data: bytes, status: int, take: Callable[[Request, bytes], None] | None
    ) -> DeviceError | None:
        if status == Status.MISSING:
            self._damaged += 1
            self._go_back(sequence)
            return None
        answered = self._pending.get(sequence)
        if answered is None:  # to a sending that was not needed
            return None
        if status == Status.NO_SESSION:
            raise DeviceError(
                f"{self._port.name}: expected an answer to {answered.request.what}, got that of a device that was "
                "switched on or programmed meanwhile; open it again and load the layers again"
            )
        del self._pending[sequence]
        self._hear()
        if self._gone_back == sequence:
            self._gone_back = None
        # Answers keep the order of the sendings, so those to earlier ones were lost.
        for pending in [*self._pending.values()]:
            if pending.last < answered.first:
                self._transmit(pending)
        if status != Status.OK:
            return _failure(self._port.name, answered.request, status)
        if len(data) != answered.request.answer_bytes:
            return DeviceError(
                f"{self._port.name}: expected {answered.request.answer_bytes} bytes in answer to "
                f"{answered.request.what}, got {len(data)}; use a bitstream of this version"
            )
        if take is not None:
            take(answered.request, data)
        return None

    def _go_back(self, sequence: int) -> None:
        if sequence in self._pending and self._gone_back != sequence:
            self._gone_back = sequence
            numbers = list(self._pending)
            for number in numbers[numbers.index(sequence) :]:
                self._transmit(self._pending[number])

    def _repeat_all(self) -> None:
        self._silent += 1
        if self._silent > ATTEMPTS:
            waiting = next(iter(self._pending.values())).request.what
            seconds = ATTEMPTS * self._patience
            got, advice = "none", "check cable and power of the board"
            if self._damaged:
                got, advice = f"{self._damaged} damaged frames and none", "check the cable, or lower the baud rate"
            raise DeviceError(
                f"{self._port.name}: expected an answer to {waiting}, got {got} for {seconds:.1f} s; "
                f"{advice}, and open it again"
            )
        self._deadline = time.monotonic() + self._patience
        self._gone_back = None
        for pending in self._pending.values():
            self._transmit(pending)

    def _greet(self) -> None:
        """Begin a session: what came before the answer with our nonce is of another one."""
        nonce = secrets.randbits(32)
        frame = encode(HEADER.pack(0, Opcode.HELLO, 0, nonce))
        heard = 0
        for _ in range(ATTEMPTS):
            self._port.write(frame)
            deadline = time.monotonic() + self._patience
            while time.monotonic() < deadline:
                data = self._port.read(True)
                heard += len(data)
                for content in self._decoder.feed(data):
                    if content is not None and len(content) == 2 + GREETING.size and content[-1] == Status.OK:
                        found, version, window, largest_count = GREETING.unpack(content[1:-1])
                        if found == nonce:
                            self._begin(version, window, largest_count)
                            return
        got = f"{heard} bytes that are none; check the baud rate and load a moe-hw bitstream"
        if heard == 0:
            got = "nothing; check power and cable of the board, and load a moe-hw bitstream"
        raise DeviceError(f"{self._port.name}: expected the answer of a moe-hw bridge, got {got}")

    def _begin(self, version: int, window: int, largest_count: int) -> None:
        if version != VERSION:
            raise DeviceError(
                f"{self._port.name}: expected a bridge of version {VERSION}, got {version}; "
                "use the bitstream and the driver of one release"
            )
        self._window = window
        self.largest_count = largest_count
        self._pending.clear()
        self._next = 1


def _failure(port: str, request: Request, status: int) -> DeviceError:
    if status == Status.TIMEOUT:
        return DeviceTimeout(
            f"{port}: {request.what}: expected an answer within {TIMEOUT_CYCLES:,} cycles, got none; "
            "reset the device, and check its memory and clock"
        )
    got = Status(status).name if status in {*Status} else f"status {status}"
    return DeviceError(f"{port}: {request.what}: expected OK, got {got}; check the address, or reset the device")
