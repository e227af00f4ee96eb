"""The words of the host bridge, as ``docs/bridge.md`` describes them, and its frames in Python."""

from __future__ import annotations

import enum
import re
import struct
import zlib
from collections.abc import Iterator

VERSION = 1
"""Version of the protocol; a ``HELLO`` is answered with it."""

BAUD = 3_000_000
"""Bits per second of a board's serial line: the most that the FTDI chip of the ULX3S can do."""

UDP_PORT = 52717
"""That a board in a network listens at; one of those for private use (RFC 6335)."""

FLAG, ESCAPE, ESCAPE_XOR = 0x7E, 0x7D, 0x20

_ESCAPED = re.compile(re.escape(bytes([ESCAPE])) + b".", re.DOTALL)

CRC_BYTES = 4

HEADER = struct.Struct("<BBHI")
"""A request's sequence number, opcode, count and address."""

GREETING = struct.Struct("<IBBH")
"""The data of the answer to ``HELLO``: nonce, version, window, largest count."""

SEQUENCES = 256

WINDOW = 16
"""Requests without an answer; the device knows the status of as many."""

LARGEST_COUNT = 512
"""Bytes of a memory access, and the boundary that it does not cross."""

WORD_BYTES = 4
"""A datagram is whole words, filled up with flags."""

QUEUE_BYTES = 2048
"""Bytes of frames that can wait in the device."""

TIMEOUT_CYCLES = 1 << 16
"""Cycles that memory and CSRs have for an access."""

RESET_CYCLES = 16
"""Cycles for which the accelerator is held in reset."""

MAX_FRAME_BYTES = 2 * (HEADER.size + LARGEST_COUNT + CRC_BYTES) + 2
"""Of a request on the line at most, every byte escaped."""


class Opcode(enum.IntEnum):
    """What a request asks for."""

    HELLO = 1
    RESET = 2
    CLOCK = 3
    CSR_READ = 4
    CSR_WRITE = 5
    MEMORY_READ = 6
    MEMORY_WRITE = 7


class Status(enum.IntEnum):
    """How a request ended. Those up to 3 are AXI's responses."""

    OK = 0
    SLVERR = 2
    DECERR = 3
    BAD_ADDRESS = 4
    MALFORMED = 5
    TIMEOUT = 6
    MISSING = 7
    NO_SESSION = 8


def largest_count(burst_bytes: int) -> int:
    """Bytes of a memory access of an accelerator with bursts of ``burst_bytes``."""
    return min(LARGEST_COUNT, burst_bytes)


def encode(content: bytes) -> bytes:
    """The frame of ``content``."""
    body = content + zlib.crc32(content).to_bytes(CRC_BYTES, "little")
    for byte in (ESCAPE, FLAG):  # escapes first: those of flags are none
        body = body.replace(bytes([byte]), bytes([ESCAPE, byte ^ ESCAPE_XOR]))
    return bytes([FLAG]) + body + bytes([FLAG])


def whole_words(frames: bytes) -> bytes:
    """``frames`` as a datagram's content."""
    return frames + bytes([FLAG]) * (-len(frames) % WORD_BYTES)


class Decoder:
    """Finds frames in bytes that come in pieces."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """The content of each frame that ``data`` completes; None for a bad one."""
        *bodies, self._partial = (self._partial + data).split(bytes([FLAG]))
        for body in bodies:
            if body:
                yield _content(body)
        if len(self._partial) > MAX_FRAME_BYTES:  # another device, which never sends a flag
            self._partial = self._partial[-1:]
            yield None


def _content(body: bytes) -> bytes | None:
    if (len(body) - len(body.rstrip(bytes([ESCAPE])))) % 2:  # an escape of nothing
        return None
    body = _ESCAPED.sub(lambda pair: bytes([pair[0][1] ^ ESCAPE_XOR]), body)
    content, crc = body[:-CRC_BYTES], body[-CRC_BYTES:]
    return content if content and zlib.crc32(content).to_bytes(CRC_BYTES, "little") == crc else None
