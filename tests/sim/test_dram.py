"""The DRAM timing model against arithmetic that a data sheet allows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boards import Board, list_boards, load_board
from sim.dram import Dram, Parameters, ideal_reader, parameters

MIB = 1 << 20


def simple(**changes: int) -> Parameters:
    """A memory for calculations in the head: a cycle is a nanosecond, a burst of 16 bytes takes 8, no refresh."""
    values = {
        "cycle": 1, "burst": 8, "controller": 0, "CL": 20, "CWL": 10, "tRCD": 15, "tRP": 14, "tRAS": 40, "tRC": 60,
        "tRRD": 12, "tFAW": 100, "tRFC": 300, "tREFI": 10**9, "tWR": 17, "tWTR": 9, "tRTW": 3,
    }  # fmt: skip
    scaled = {name: value * 1_000_000 for name, value in (values | changes).items() if name not in GEOMETRY}
    return Parameters(**scaled, **(GEOMETRY | {name: changes[name] for name in GEOMETRY.keys() & changes.keys()}))


GEOMETRY = {"burst_bytes": 16, "row_bytes": 256, "banks": 4, "channels": 1}
ROW = 256
NEXT_ROW_SAME_BANK = 4 * ROW


def arrival(dram: Dram, address: int, now: int = 0) -> int:
    """Cycle in which a whole burst from ``address`` is there."""
    return int(dram.read(address, 1, 16, now)[0])


def test_closed_row_then_open_row_then_conflict() -> None:
    with Dram(simple()) as dram:
        assert arrival(dram, 0, 1000) == 1000 + 15 + 20 + 8
        assert arrival(dram, 16, 2000) == 2000 + 20 + 8
        assert arrival(dram, NEXT_ROW_SAME_BANK, 3000) == 3000 + 14 + 15 + 20 + 8


def test_conflict_right_after_an_activate_waits_for_the_row_cycle() -> None:
    with Dram(simple()) as dram:
        arrival(dram, 0)
        # tRC of the first activate is longer than tRAS + tRP.
        assert arrival(dram, NEXT_ROW_SAME_BANK) == 60 + 15 + 20 + 8
    with Dram(simple(tRC=50)) as dram:
        arrival(dram, 0)
        assert arrival(dram, NEXT_ROW_SAME_BANK) == 40 + 14 + 15 + 20 + 8


def test_another_bank_is_activated_while_data_moves() -> None:
    with Dram(simple()) as dram:
        first = dram.read(0, ROW // 16, 16, 0)
        assert arrival(dram, ROW) == first[-1] + 8


def test_activates_keep_their_distance() -> None:
    with Dram(simple(burst=1)) as dram:
        assert [arrival(dram, bank * ROW) for bank in range(4)] == [36, 48, 60, 72]  # tRRD
    with Dram(simple(burst=1, banks=8)) as dram:
        assert [arrival(dram, bank * ROW) for bank in range(6)] == [36, 48, 60, 72, 136, 148]  # tFAW after the first


def test_words_of_a_burst_arrive_at_the_rate_of_the_pins() -> None:
    with Dram(simple()) as dram:
        assert (dram.read(0, 8, 4, 0) - 35).tolist() == [2, 4, 6, 8, 10, 12, 14, 16]
    with Dram(simple()) as dram:
        assert (dram.read(0, 2, 64, 0) - 35).tolist() == [32, 64]


def test_turnaround() -> None:
    with Dram(simple()) as dram:
        assert dram.write(0, 16, 0) == 15 + 10 + 8
        assert arrival(dram, 16, 0) == 33 + 9 + 20 + 8  # tWTR from the last data, then CL
        assert dram.write(32, 16, 0) == 70 + 3 + 8  # tRTW on the pins
        assert dram.write(48, 16, 0) == 81 + 8
        assert arrival(dram, NEXT_ROW_SAME_BANK) == 89 + 17 + 14 + 15 + 20 + 8  # tWR, then precharge


def test_refresh_closes_rows_and_rests() -> None:
    with Dram(simple(tREFI=2000)) as dram:
        arrival(dram, 0, 1000)
        assert arrival(dram, 16, 2000) == 2000 + 14 + 300 + 15 + 20 + 8
    with Dram(simple(tREFI=2000)) as dram:
        assert arrival(dram, 0, 5000) == 5000 + 15 + 20 + 8  # both refreshes passed while it idled
    with Dram(simple(tREFI=2000)) as dram:
        dram.reset(1500)
        assert arrival(dram, 0, 2100) == 2100 + 15 + 20 + 8


def test_channels_work_side_by_side() -> None:
    def cycles(channels: int) -> int:
        with Dram(simple(channels=channels, row_bytes=1024)) as dram:
            return int(dram.read(0, 1024, 16, 0)[-1])

    assert cycles(1) > 3.8 * cycles(4) > 3.8 * 1024 * 8 / 4


@pytest.mark.parametrize("name", list_boards())
def test_sequential_reads_reach_the_pins_less_refresh(name: str) -> None:
    board = load_board(name)
    timing = board.memory.timing
    size = 4 * MIB + board.memory.burst_bytes
    best = size / board.memory.bytes_per_second * board.clock_mhz * 1e6 / (1 - timing.tRFC / timing.tREFI)
    assert best * 0.999 <= ideal_reader(board, size) <= best * 1.03


@pytest.mark.parametrize("name", list_boards())
def test_refresh_costs_its_share(name: str) -> None:
    board = load_board(name)
    timing = board.memory.timing
    without = dataclasses.replace(timing, tREFI=1e9)
    size = 16 * MIB
    cost = ideal_reader(board, size) / ideal_reader(_with(board, without), size) - 1
    rows = timing.tRP + timing.tRCD + timing.CL + timing.tRAS
    assert timing.tRFC / timing.tREFI <= cost <= (timing.tRFC + rows) / (timing.tREFI - timing.tRFC - rows)


def _with(board: Board, timing: object) -> Board:
    return dataclasses.replace(board, memory=dataclasses.replace(board.memory, timing=timing))


@pytest.mark.parametrize("name", list_boards())
def test_random_reads_are_bound_by_rows(name: str) -> None:
    board = load_board(name)
    memory, timing = board.memory, board.memory.timing
    burst, count = memory.burst_bytes, 4000
    addresses = [
        burst * int(index) for index in np.random.default_rng(1).integers(0, memory.size_bytes // burst, count)
    ]

    def nanoseconds(cycles: int) -> float:
        return cycles / board.clock_mhz * 1e3 / count

    with Dram(parameters(board)) as dram:
        at_once = nanoseconds(int([dram.read(address, 1, burst, 0)[0] for address in addresses][-1]))
    pins = burst / memory.bytes_per_second * 1e9
    assert max(1.1 * pins, timing.tFAW / 4, timing.tRC / memory.banks) < at_once < timing.tRC + pins

    now = 0
    with Dram(parameters(board)) as dram:
        for address in addresses:
            now = int(dram.read(address, 1, burst, now)[0])
    row = timing.tRP + timing.tRCD + timing.CL + pins + memory.controller_ns
    refresh = 1 + 2 * timing.tRFC / timing.tREFI
    assert 0.95 * row < nanoseconds(now) < (row + 2e3 / board.clock_mhz) * refresh


def test_timings_are_whole_memory_clocks() -> None:
    sdr = parameters(load_board("ulx3s-85f"))
    clock = 1e9 / 133
    assert sdr.cycle == 12_500_000
    for value, clocks in ((sdr.CL, 3), (sdr.tRCD, 2), (sdr.tRAS, 5), (sdr.tRC, 8), (sdr.tFAW, 0), (sdr.burst, 8)):
        assert abs(value - clocks * clock) < 1
    ddr = parameters(load_board("kv260"))
    assert abs(ddr.CL - 17e9 / 1200) < 1 and abs(ddr.burst - 4e9 / 1200) < 1


@settings(max_examples=50, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(st.booleans(), st.integers(0, 1 << 14), st.integers(1, 64), st.integers(0, 300)), max_size=40
    ),
    channels=st.sampled_from([1, 2, 8]),
    tREFI=st.sampled_from([700, 2000, 10**9]),
)
def test_order_causality_and_bandwidth_hold_for_any_accesses(
    accesses: list[tuple[bool, int, int, int]], channels: int, tREFI: int
) -> None:
    now, moved = 0, 0
    word = 4
    with (
        Dram(simple(channels=channels, tREFI=tREFI, row_bytes=512)) as dram,
        Dram(simple(channels=channels, tREFI=tREFI, row_bytes=512)) as again,
    ):
        last = 0
        for write, index, words, pause in accesses:
            now += pause
            address = index * word
            moved += words * word
            if write:
                done = dram.write(address, words * word, now)
                assert done == again.write(address, words * word, now)
                assert done > now + 10
            else:
                times = dram.read(address, words, word, now)
                assert np.array_equal(times, again.read(address, words, word, now))
                assert times[0] > now + 20 and (np.diff(times.astype(np.int64)) >= 0).all()
                done = int(times[-1])
            last = max(last, done)
        if channels == 1:
            assert last >= moved / 16 * 8
