"""The driver's end of the line: every request once and in order whatever its bytes meet, and a bound on waiting."""

from __future__ import annotations

import random
import time

import pytest

from host import link
from host.link import ATTEMPTS, Link, Request
from moe_hw.bridge import GREETING, VERSION, WINDOW, Opcode, Status, encode
from moe_hw.errors import DeviceError, DeviceTimeout
from sim.bench.runner import random_seed
from sim.serial import LineFaults
from tests.host.line import FakePort
from tests.moe_hw.peer import Peer

CSR_WORDS = 16


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_REACTION_SECONDS", 0.004)


def peer() -> Peer:
    return Peer(bytearray(4096), [0] * CSR_WORDS)


def read(address: int, count: int) -> Request:
    return Request(Opcode.MEMORY_READ, "a read", address, count, b"", count)


def write(address: int, data: bytes) -> Request:
    return Request(Opcode.MEMORY_WRITE, "a write", address, len(data), data)


def random_requests(generator: random.Random, writes: bool) -> list[Request]:
    """Reads, or writes with reads behind them: what a driver may have under way together."""
    out = []
    for _ in range(generator.randint(1, 60)):
        word = generator.randrange(CSR_WORDS)
        address = generator.randrange(4096)
        count = min(generator.choice((1, 7, 512)), 512 - address % 512)
        if writes:
            value = generator.randbytes(4)
            out.append(generator.choice((
                write(address, generator.randbytes(count)), Request(Opcode.CSR_WRITE, "a CSR", 4 * word, 4, value),
            )))  # fmt: skip
        else:
            out.append(generator.choice((
                read(address, count), Request(Opcode.CSR_READ, "a CSR", 4 * word, 4, b"", 4),
            )))  # fmt: skip
    return out


@pytest.mark.parametrize("rate", [0.0, 0.0002, 0.002])
def test_each_request_has_its_effect_once_and_its_answer(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two of three of the largest frames are damaged at the highest rate: eight in a row are nothing special.
    monkeypatch.setattr(link, "ATTEMPTS", 100)
    seed = random_seed()
    print(f"COCOTB_RANDOM_SEED={seed}")
    generator = random.Random(seed)
    port = FakePort(peer(), seed, rate)
    device, model = Link(port), peer()
    for number in range(100):
        requests = random_requests(generator, writes=number % 2 == 0)
        answers: dict[int, bytes] = {}
        device.exchange(requests, lambda request, data, answers=answers: answers.update({id(request): data}))
        assert len(answers) == len(requests)
        for request in requests:
            status, expected = model._do(request.opcode, request.count, request.address, request.data)
            assert status == Status.OK and answers[id(request)] == expected
        assert port.peer.memory == model.memory and port.peer.csrs == model.csrs
        assert port.peer.done == model.done
    assert (port._faults.count > 0) == (rate > 0)


def test_a_window_is_under_way_and_no_more() -> None:
    port = FakePort(peer())
    device = Link(port)
    port.deaf = True
    drawn = 0

    def source():
        nonlocal drawn
        for address in range(100):
            drawn += 1
            yield read(address, 1)

    with pytest.raises(DeviceError, match="expected an answer to a read, got none for"):
        device.exchange(source())
    assert drawn == WINDOW


def test_nothing_is_sent_twice_on_a_good_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_REACTION_SECONDS", 10.0)
    port = FakePort(peer())
    device = Link(port)
    device.exchange(write(512 * (number % 8), bytes(512)) for number in range(300))
    assert port.frames == 1 + 300


@pytest.mark.parametrize("lost", ["lost_frames", "lost_answers"])
def test_one_loss_is_seen_by_what_comes_behind_it(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for a silence; of a lost answer its request alone is sent again."""
    monkeypatch.setattr(link, "_REACTION_SECONDS", 10.0)
    port = FakePort(peer())
    device = Link(port)
    setattr(port, lost, {20, 60})
    begun = time.monotonic()
    device.exchange(write(number, bytes([number])) for number in range(100))
    assert time.monotonic() - begun < 5
    assert port.peer.memory[:100] == bytes(range(100)) and port.peer.done == 100
    again = port.frames - 101
    assert again == 2 if lost == "lost_answers" else 2 <= again <= 2 * WINDOW


@pytest.mark.parametrize(("request_", "error", "text"), [
    (read(4096, 7), DeviceError, "a read: expected OK, got DECERR"),
    (Request(Opcode.CSR_READ, "a CSR", 400, 4, b"", 4), DeviceError, "a CSR: expected OK, got BAD_ADDRESS"),
    (read(500, 20), DeviceError, "a read: expected OK, got MALFORMED"),
])  # fmt: skip
def test_errors_stop_what_follows_and_the_link_goes_on(
    request_: Request, error: type[DeviceError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first error is told, and no answer of those under way is waited for in vain."""
    monkeypatch.setattr(link, "_REACTION_SECONDS", 10.0)
    port = FakePort(peer())
    device = Link(port)
    later = [write(0, b"x")] * 100
    begun = time.monotonic()
    with pytest.raises(error, match=text):
        device.exchange([request_, read(4097, 7), *later])
    assert port.peer.done < len(later) and time.monotonic() - begun < 5
    device.exchange([write(8, b"abc")])
    assert port.peer.memory[8:11] == b"abc"


def test_a_timeout_of_the_device_is_one_of_the_driver() -> None:
    port = FakePort(peer())
    device = Link(port)
    port.peer._do = lambda *_: (Status.TIMEOUT, b"")  # type: ignore[method-assign]
    with pytest.raises(DeviceTimeout, match="a read: expected an answer within 65,536 cycles, got none"):
        device.exchange([read(0, 4)])


def test_a_device_that_was_switched_off_is_told_and_stays_lost() -> None:
    port = FakePort(peer())
    device = Link(port)
    device.exchange([read(0, 1)])
    port.peer = peer()
    for _ in range(2):
        with pytest.raises(DeviceError, match="switched on or programmed meanwhile; open it again"):
            device.exchange([read(0, 1)])
    Link(port).exchange([read(0, 1)])


def test_an_interrupted_exchange_leaves_nothing_behind() -> None:
    port = FakePort(peer(), 5)
    device = Link(port)

    def interrupt(request: Request, data: bytes) -> None:
        raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            device.exchange([read(0, 512)] * 40, interrupt)
        found: list[bytes] = []
        device.exchange([write(100, b"hello"), read(100, 5)], lambda _, data, found=found: found.append(data))
        assert found == [b"", b"hello"]


def test_silence_is_told_within_its_bound() -> None:
    port = FakePort(peer())
    port.deaf = True
    begun = time.monotonic()
    with pytest.raises(DeviceError, match="expected the answer of a moe-hw bridge, got nothing; check power"):
        Link(port)
    assert time.monotonic() - begun < ATTEMPTS * 0.1
    port.deaf = False
    device = Link(port)
    port.deaf = True
    for _ in range(2):
        with pytest.raises(DeviceError, match="expected an answer to a read, got none for .* check cable and power"):
            device.exchange([read(0, 1)])


@pytest.mark.parametrize("side", ["device", "driver"])
def test_a_line_that_damages_all_is_told(side: str) -> None:
    port = FakePort(peer())
    device = Link(port)
    if side == "device":
        port.peer.answer = lambda frame: bytes([1, Status.MISSING])  # type: ignore[method-assign]
    else:
        port._faults = LineFaults(1, 0.5)
    with pytest.raises(DeviceError, match=r"got \d+ damaged frames and none for .* s; check the cable, or"):
        device.exchange([write(0, bytes(500))])


def test_another_device_is_told() -> None:
    class Chatter(FakePort):
        def read(self, wait: bool) -> bytes:
            return b"login: "

    with pytest.raises(DeviceError, match="expected the answer of a moe-hw bridge, got .* bytes that are none; check"):
        Link(Chatter(peer()))


def test_another_version_is_told() -> None:
    port = FakePort(peer())
    port.peer._do = lambda opcode, count, nonce, data: (  # type: ignore[method-assign]
        Status.OK, GREETING.pack(nonce, VERSION + 1, WINDOW, 512),
    )  # fmt: skip
    with pytest.raises(DeviceError, match=f"expected a bridge of version {VERSION}, got {VERSION + 1}; use"):
        Link(port)


def test_answers_of_another_session_are_none_of_ours() -> None:
    port = FakePort(peer())
    old = GREETING.pack(1, VERSION + 1, WINDOW, 512)
    port.junk = b"\x12\x34" + encode(bytes([0, *old, 0])) + encode(bytes([1, 2, 3, 0]))
    Link(port).exchange([read(0, 4)], lambda request, data: None)


def test_an_answer_of_another_length_is_told() -> None:
    port = FakePort(peer())
    device = Link(port)
    port.peer._do = lambda *_: (Status.OK, b"123")  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="expected 4 bytes in answer to a read, got 3; use a bitstream"):
        device.exchange([read(0, 4)])
