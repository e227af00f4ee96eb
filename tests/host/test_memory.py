"""The allocator never overlaps, aligns, and gets everything back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.memory import Allocator
from moe_hw.arch import SEGMENT_ALIGN
from moe_hw.errors import DeviceError
from moe_hw.image import aligned

SIZE = 64 * 100


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 2000), st.integers(0, 50)), max_size=60))
def test_allocations_never_overlap_and_all_come_back(steps: list[tuple[bool, int, int]]) -> None:
    memory = Allocator(SIZE + 63)
    live: dict[int, int] = {}
    for release, size, pick in steps:
        if release and live:
            address = sorted(live)[pick % len(live)]
            del live[address]
            memory.free(address)
            continue
        largest = memory.largest_hole
        try:
            address = memory.alloc(size, "a test")
        except DeviceError:
            assert largest < aligned(size)
            continue
        assert address % SEGMENT_ALIGN == 0 and address + size <= SIZE
        for other, length in live.items():
            assert address + size <= other or other + length <= address
        live[address] = size
        assert memory.free_bytes == SIZE - sum(map(aligned, live.values()))
    for address in live:
        memory.free(address)
    assert memory.alloc(SIZE, "everything") == 0


def test_first_fit_takes_the_first_hole_that_is_large_enough() -> None:
    memory = Allocator(SIZE)
    first, second, third, _ = (memory.alloc(size, "x") for size in (64, 128, 192, 64))
    memory.free(first)
    memory.free(third)
    assert memory.alloc(128, "x") == third
    assert memory.alloc(1, "x") == first
    memory.free(second)
    assert memory.alloc(128, "x") == second


def test_full_memory_says_what_was_needed_and_what_is_free() -> None:
    memory = Allocator(1024)
    memory.alloc(512, "x")
    with pytest.raises(DeviceError, match=r"layer 3 needs 1,024 bytes, 512 of 1,024 are free .* 512\)"):
        memory.alloc(1000, "layer 3")


def test_freeing_twice_is_an_error() -> None:
    memory = Allocator(1024)
    address = memory.alloc(1, "x")
    memory.free(address)
    with pytest.raises(KeyError):
        memory.free(address)
