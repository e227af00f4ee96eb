"""The bridge's frames in Python, and its words against the page of record."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_hw import bridge
from moe_hw.bridge import ESCAPE, FLAG, HEADER, LARGEST_COUNT, MAX_FRAME_BYTES, Decoder, Opcode, Status, encode

PAGE = (Path(__file__).parents[2] / "docs" / "bridge.md").read_text(encoding="utf-8")
CONTENTS = st.lists(
    st.binary(min_size=1, max_size=40) | st.lists(st.sampled_from([FLAG, ESCAPE, 0x5E, 0x5D]), min_size=1).map(bytes),
    min_size=1,
)


def decode(line: bytes, pieces: int = 1) -> list[bytes | None]:
    decoder = Decoder()
    return [frame for at in range(0, len(line), pieces) for frame in decoder.feed(line[at : at + pieces])]


@given(CONTENTS, st.integers(1, 20))
def test_frames_come_back_however_they_are_cut(contents: list[bytes], pieces: int) -> None:
    assert decode(b"".join(map(encode, contents)), pieces) == contents


def test_a_frame_as_it_is_on_the_line() -> None:
    # CRC-32 of "123456789" is 0xcbf43926 in every catalogue.
    assert encode(b"123456789") == b"\x7e123456789\x26\x39\xf4\xcb\x7e"
    assert encode(b"\x7e\x7d")[:5] == b"\x7e\x7d\x5e\x7d\x5d"
    assert len(encode(bytes([FLAG]) * (HEADER.size + LARGEST_COUNT))) <= MAX_FRAME_BYTES


@pytest.mark.parametrize("fault", ["lose", "repeat", "change", "add", "flag"])
def test_a_fault_at_any_byte_costs_a_frame_at_most(fault: str) -> None:
    """Never does another content come out, and the frames beside it are there."""
    contents = [b"before" + bytes(range(0x70, 0x80)), b"hit\x7e\x7d" + bytes(range(40)), b"behind", b"last"]
    line = b"".join(map(encode, contents))
    generator = random.Random(1)
    for at in range(len(line)):
        put = {
            "lose": b"",
            "repeat": line[at : at + 1] * 2,
            "change": bytes([line[at] ^ 1 << generator.randrange(8)]),
            "add": line[at : at + 1] + bytes([generator.randrange(256)]),
            "flag": bytes([FLAG]),
        }[fault]
        found = [frame for frame in decode(line[:at] + put + line[at + 1 :]) if frame is not None]
        assert len(found) >= len(contents) - 2 and set(found) <= set(contents)
        # Two are lost only if the fault makes one frame of them.
        if line[at] != FLAG:
            assert len(found) >= len(contents) - 1


@given(st.binary(max_size=300))
def test_noise_is_no_frame(noise: bytes) -> None:
    assert all(frame is None for frame in decode(noise))


def test_a_line_without_flags_fills_no_memory() -> None:
    decoder = Decoder()
    for _ in range(50):
        assert list(decoder.feed(bytes(100))) in ([], [None])
    assert len(decoder._partial) <= MAX_FRAME_BYTES
    assert [*decoder.feed(encode(b"x"))][-1] == b"x"


@pytest.mark.parametrize(("codes", "heading"), [(Opcode, "## Requests"), (Status, "## Answers")])
def test_the_page_lists_all_codes(codes: type[Opcode] | type[Status], heading: str) -> None:
    section = PAGE.split(heading)[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section, re.MULTILINE)
    assert {name: int(code) for code, name in rows} == {code.name: code.value for code in codes}


def test_the_page_has_the_sizes() -> None:
    for text in (
        "with less than a header, is **bad**",
        f"one of the {bridge.WINDOW} numbers before it",
        f"| `MEMORY_READ` | 1 to {bridge.LARGEST_COUNT} |",
        f"within {bridge.TIMEOUT_CYCLES:,} cycles",
        f"holds {bridge.QUEUE_BYTES:,} bytes in up to {bridge.WINDOW} frames",
        f"reset for {bridge.RESET_CYCLES} cycles",
        f"modulo {bridge.SEQUENCES}",
    ):
        assert text in " ".join(PAGE.split()), text
