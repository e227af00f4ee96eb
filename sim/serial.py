"""A pseudo-terminal in place of a serial port: what a program writes to it goes to a simulated device's pins, and back.

The device is anything compiled with a ``Uart`` of ``sim/uart.h``; :class:`LineFaults` disturbs the bytes on their way.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import os
import random
import select
import threading
import tty
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, TypeVar

SLICE = 2_000
"""Cycles between two looks at the pseudo-terminal: a few bytes, as an exchange waits for two of them."""

QUIET_CYCLES = 200_000
"""Cycles without a bit on the line after which the device is thought to have nothing to say: longer than any of the
bridge's waits. Time stands still until the next byte."""

IDLE_SECONDS = 0.05
"""Between two looks for work while time stands still."""

REPLY_SECONDS = 0.005
"""For a program to go on after an answer, before time does: what it says next mostly depends on it."""

ANSWERED_CYCLES = 200
"""Cycles without a bit behind an answer: no more of it follows."""

_CHUNK = 4096
_Self = TypeVar("_Self", bound="FarEnd")
_Item = TypeVar("_Item")


class LineDevice(Protocol):
    """A simulated device with a serial line."""

    def run_line(self, cycles: int, sent: bytes) -> bytes:
        """Send bytes, let ``cycles`` pass, and return the bytes received."""

    @property
    def quiet(self) -> int:
        """Cycles since the last bit on the line; 0 while bytes wait to be sent."""


class Faults:
    """What happens to bytes or frames on their way.

    Parameters:
        seed: of the random numbers.
        rate: share of them that something happens to.

    Attributes:
        count: of those that something has happened to.
    """

    def __init__(self, seed: int, rate: float):
        self._random = random.Random(seed)
        self._rate = rate
        self.count = 0

    def _strike(self, sent: Iterable[_Item], damage: Callable[[_Item], Iterable[_Item]]) -> Iterator[_Item]:
        """``sent`` with some of it replaced by what ``damage`` makes of it."""
        for item in sent:
            if self._random.random() < self._rate:
                self.count += 1
                yield from damage(item)
            else:
                yield item


class LineFaults(Faults):
    """Loses, repeats, changes and adds bytes."""

    def __call__(self, data: bytes) -> bytes:
        """``data`` as it arrives."""
        return bytes(self._strike(data, self._damage)) if self._rate else data

    def _damage(self, byte: int) -> bytes:
        other = self._random.choice((0x7D, 0x7E, self._random.randrange(256)))
        return self._random.choice((b"", bytes([byte, byte]), bytes([other]), bytes([byte, other])))


class FarEnd(abc.ABC):
    """The outside of a simulated device, which a thread of its own runs.

    Parameters:
        name: of the thread.

    Attributes:
        error: what ended the simulation before :meth:`close`, if anything did.
    """

    def __init__(self, name: str):
        self.error: BaseException | None = None
        self._answered = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Unplug the device: whoever has it open finds it gone. Closing twice is fine."""
        self._stop.set()
        self._thread.join()
        self._release()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._step()
        except BaseException as error:
            self.error = error

    def _patience(self, active: object) -> float:
        """Seconds to wait for what comes from outside; an answer has just gone out if ``_answered``."""
        if self._answered:
            self._answered = False
            return REPLY_SECONDS
        return 0 if active else IDLE_SECONDS

    @abc.abstractmethod
    def _step(self) -> None:
        """Run the device for a short time; wait for a moment if it has nothing to do."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Give back what the device was reached by."""


class PseudoTerminal(FarEnd):
    """A pseudo-terminal whose other side is a simulated device.

    Parameters:
        device: what is at the other side; used by no one else while this is open.
        faults: what happens to bytes, in both directions.

    Attributes:
        path: the name to open as a serial port.
    """

    def __init__(self, device: LineDevice, faults: LineFaults | None = None):
        self._device = device
        self._faults = faults or LineFaults(0, 0)
        self._answers = b""
        # This side of the terminal stays open, so that one program may follow another at the port.
        self._line, self._port = os.openpty()
        tty.setraw(self._port)
        os.set_blocking(self._line, False)
        self.path = os.ttyname(self._port)
        super().__init__(f"simulation at {self.path}")

    def _step(self) -> None:
        active = self._answers or self._device.quiet < QUIET_CYCLES
        readable, _, _ = select.select([self._line], [], [], self._patience(active))
        sent = self._faults(os.read(self._line, _CHUNK)) if readable else b""
        if sent or active:
            came = self._device.run_line(SLICE, sent)
            self._answered = came != b"" and self._device.quiet > ANSWERED_CYCLES
            self._answers += self._faults(came)
            with contextlib.suppress(BlockingIOError):
                self._answers = self._answers[os.write(self._line, self._answers) :]

    def _release(self) -> None:
        for descriptor in (self._line, self._port):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._line = self._port = -1


LINE_FUNCTIONS = {
    "line_run": (
        ctypes.c_uint64,
        [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_uint64],
    ),
    "line_destroy": (None, [ctypes.c_void_p]),
    "line_violation": (ctypes.c_char_p, [ctypes.c_void_p]),
    "line_cycles": (ctypes.c_uint64, [ctypes.c_void_p]),
    "line_quiet": (ctypes.c_uint64, [ctypes.c_void_p]),
}
"""What the library of every device with a serial line has; the first argument is the device."""


class CompiledLine:
    """A device with a serial line in a compiled simulation.

    Parameters:
        library: loaded with ``LINE_FUNCTIONS``.
        handle: the device.
    """

    def __init__(self, library: ctypes.CDLL, handle: int):
        self._library, self._handle = library, handle

    def run_line(self, cycles: int, sent: bytes) -> bytes:
        """As of :class:`LineDevice`."""
        room = ctypes.create_string_buffer(_CHUNK)
        count = self._library.line_run(self._handle, cycles, sent, len(sent), room, _CHUNK)
        return room.raw[:count]

    @property
    def quiet(self) -> int:
        """As of :class:`LineDevice`."""
        return self._library.line_quiet(self._handle)

    @property
    def cycles(self) -> int:
        """Cycles since the device was made."""
        return self._library.line_cycles(self._handle)

    @property
    def violation(self) -> str | None:
        """The first rule of a bus or of a memory chip that the device broke."""
        text = self._library.line_violation(self._handle)
        return None if text is None else text.decode()

    def close(self) -> None:
        """Free the simulation. Nothing may be done with it afterwards."""
        self._library.line_destroy(self._handle)
