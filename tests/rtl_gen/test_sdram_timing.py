"""The controller's waits: each is what the chip's times ask for, and not a slot more."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boards import Memory, load_board
from rtl_gen.sdram_timing import BURST, SLOT, SdramTiming

ULX3S = load_board("ulx3s-85f").memory


def test_the_ulx3s() -> None:
    assert SdramTiming.of(ULX3S) == SdramTiming(
        latency=3, precharge=1, activate=1, refresh=4, mode=1, open=3, column=1, read_recovery=1, write_recovery=1,
        turnaround=3, write_to_read=1, interval=1038, power_up=26,
    )  # fmt: skip


def memory(**clocks: int) -> Memory:
    """A memory with these times, in clocks."""
    clock = ULX3S.clock_ns
    timing = dataclasses.replace(ULX3S.timing, **{name: number * clock for name, number in clocks.items()})
    return dataclasses.replace(ULX3S, timing=timing)


TIMES = ("tRCD", "tRP", "tRAS", "tRC", "tRRD_L", "tWR", "tRFC", "tWTR_L", "tRTW")


@given(st.fixed_dictionaries({name: st.integers(1, 12) for name in TIMES}), st.sampled_from([2, 3]))
def test_waits_are_long_enough_and_no_longer(clocks: dict[str, int], latency: int) -> None:
    """Clocks between two commands: a column command is in the first clock of its slot, a row command in the second."""
    timing = SdramTiming.of(memory(CL=latency, **clocks))
    waits = {
        "precharge": (timing.precharge * SLOT, clocks["tRP"]),
        "activate": (timing.activate * SLOT, clocks["tRRD_L"]),
        "refresh": (timing.refresh * SLOT, clocks["tRFC"]),
        "column": (timing.column * SLOT + 1, clocks["tRCD"]),
        "read_recovery": (timing.read_recovery * SLOT + 1, BURST),
        "write_recovery": (timing.write_recovery * SLOT + 1, BURST - 1 + clocks["tWR"]),
        "write_to_read": (timing.write_to_read * SLOT, BURST - 1 + clocks["tWTR_L"]),
        "turnaround": (timing.turnaround * SLOT, latency + BURST + clocks["tRTW"]),
    }
    for name, (got, needed) in waits.items():
        assert needed <= got < needed + SLOT, name
    row_cycle = (timing.open + timing.precharge) * SLOT
    assert timing.open * SLOT >= clocks["tRAS"] and row_cycle >= clocks["tRC"]
    assert timing.open * SLOT < clocks["tRAS"] + SLOT or row_cycle < clocks["tRC"] + SLOT


def test_all_rows_are_refreshed_in_time_though_each_refresh_may_be_late() -> None:
    timing = SdramTiming.of(ULX3S)
    longest_segment = ULX3S.row_bytes // 4 * SLOT
    late = longest_segment + 40
    assert 8192 * timing.interval + late <= 64e6 / ULX3S.clock_ns
    assert timing.power_up * timing.interval * ULX3S.clock_ns >= 200_000


@pytest.mark.parametrize("board", ["kv260", "u280"])
def test_another_memory_is_refused(board: str) -> None:
    with pytest.raises(ValueError, match="memory: expected one channel of SDR SDRAM with 16 bits, got "):
        SdramTiming.of(load_board(board).memory)
