"""The build-time sizes: what they derive and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe_hw import registers
from moe_hw.arch import Arch, ArchError


def test_beats_follow_from_the_columns() -> None:
    arch = Arch(columns=16, data_bits=128)
    assert (arch.beat_bits, arch.beat_bytes, arch.words_per_beat) == (512, 64, 4)


def test_every_choice_has_a_queue_entry() -> None:
    assert Arch(max_tokens=4, max_top_k=3).queue_entries == 16


def test_dict_round_trip() -> None:
    arch = Arch(columns=32, max_tokens=1)
    assert Arch(**arch.as_dict()) == arch


@pytest.mark.parametrize("field", Arch().as_dict())
def test_hash_depends_on_every_size(field: str) -> None:
    arch = Arch(data_bits=64)
    value = {"max_top_k": 8, "addr_bits": 36}.get(field, getattr(arch, field) * 2)
    assert replace(arch, **{field: value}).hash != arch.hash


def test_hash_depends_on_the_layout_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Arch().hash
    monkeypatch.setattr(registers, "LAYOUT_VERSION", registers.LAYOUT_VERSION + 1)
    assert Arch().hash != before
    assert 0 <= before < 1 << 64


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"columns": 2}, "columns: expected a power of two from 4 to 128, got 2"),
        ({"columns": 12}, "columns: expected a power of two from 4 to 128, got 12"),
        ({"columns": 8.0}, "columns: expected a power of two from 4 to 128, got 8.0"),
        ({"max_experts": 1}, "max_experts: expected a power of two from 2 to 512, got 1"),
        ({"max_top_k": 17}, "max_top_k: expected 1 to 16, got 17"),
        ({"addr_bits": 40}, "addr_bits: expected 24 to 38, got 40"),
        ({"columns": 4, "data_bits": 256}, "data_bits: expected at most a beat of 128 bits .* got 256; choose"),
        ({"vector_blocks": 1 << 18}, "vector_blocks: expected a power of two from 64 to 131072, got 262144"),
        ({"slots": 3}, "slots: expected a power of two from 1 to 256, got 3"),
        ({"slots": 512}, "slots: expected a power of two from 1 to 256, got 512"),
        ({"lanes": 3}, "lanes: expected a power of two from 1 to 16, got 3"),
        ({"lanes": 2, "columns": 4, "data_bits": 64}, "lanes: expected at most a quarter of the 4 columns, .* got 2"),
        ({"lanes": 2}, "lanes: .* 32 bits each within the bus of 32, got 2"),
        ({"burst_bytes": 64, "data_bits": 512, "columns": 32}, "burst_bytes: expected at least two bus words"),
    ],
)
def test_sizes_that_cannot_be_built(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ArchError, match=message):
        Arch(**sizes)
