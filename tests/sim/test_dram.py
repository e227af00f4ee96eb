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
        "tRRD_S": 12, "tRRD_L": 12, "tFAW": 100, "tCCD_S": 4, "tCCD_L": 4, "tRFC": 300, "tREFI": 10**9, "tWR": 17,
        "tWTR_S": 9, "tWTR_L": 9, "tRTP": 0, "tRTW": 3,
    }  # fmt: skip
    scaled = {name: value * 1_000_000 for name, value in (values | changes).items() if name not in GEOMETRY}
    return Parameters(**scaled, **(GEOMETRY | {name: changes[name] for name in GEOMETRY.keys() & changes.keys()}))


GEOMETRY = {"burst_bytes": 16, "row_bytes": 256, "banks": 4, "bank_groups": 1, "channels": 1, "interleave": 256}
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


def test_a_read_delays_the_precharge() -> None:
    with Dram(simple(tRTP=30)) as dram:
        arrival(dram, 0, 1000)
        arrival(dram, 16, 2000)
        assert arrival(dram, NEXT_ROW_SAME_BANK, 2010) == 2000 + 30 + 14 + 15 + 20 + 8


def test_bank_groups() -> None:
    groups = {"bank_groups": 2, "tCCD_S": 10, "tCCD_L": 14, "tRRD_S": 12, "tRRD_L": 17, "tWTR_S": 9, "tWTR_L": 21}
    other_group, same_group = 16, 32
    with Dram(simple(**groups)) as dram:
        assert (arrival(dram, 0), arrival(dram, other_group)) == (43, 43 + 12)  # two activates, tRRD_S
        assert arrival(dram, same_group, 1000) == 1028
        assert arrival(dram, other_group, 1000) == 1028 + 10  # tCCD_S
        assert arrival(dram, other_group + same_group, 1000) == 1038 + 14  # tCCD_L
    with Dram(simple(**groups)) as dram:
        assert (arrival(dram, 0), arrival(dram, 2 * ROW)) == (43, 43 + 17)  # tRRD_L
    for place, wait in ((other_group, 9), (same_group, 21)):
        with Dram(simple(**groups)) as dram:
            arrival(dram, place)
            done = dram.write(0, 16, 1000)
            assert arrival(dram, place, 1000) == done + wait + 20 + 8


def test_sequential_reads_take_turns_in_the_groups() -> None:
    with Dram(simple(bank_groups=2, burst=8, tCCD_L=14)) as dram:
        times = dram.read(0, 256, 16, 0)
        assert times[-1] - times[1] == 254 * 8


def test_channels_are_independent() -> None:
    def cycles(channels: int, words: int) -> int:
        with Dram(simple(channels=channels, row_bytes=1024, tREFI=2000)) as dram:
            return int(dram.read(0, words, 16, 0)[-1])

    assert cycles(32, 32 * 1024) == cycles(1, 1024)  # 32 times the bandwidth

    rng = np.random.default_rng(2)
    accesses = [(int(rng.integers(1 << 12)) * 16, 20 * step, bool(rng.integers(2))) for step in range(400)]

    def run(dram: Dram, address: int, now: int, write: bool) -> int:
        return dram.write(address, 16, now) if write else arrival(dram, address, now)

    with Dram(simple(channels=4, tREFI=2000)) as dram:
        together = [run(dram, *access) for access in accesses]
    for channel in range(4):
        mine = [index for index, access in enumerate(accesses) if access[0] // 256 % 4 == channel]
        with Dram(simple(channels=4, tREFI=2000)) as dram:
            assert [run(dram, *accesses[index]) for index in mine] == [together[index] for index in mine]


@pytest.mark.parametrize("name", list_boards())
def test_sequential_reads_reach_the_pins_less_refresh(name: str) -> None:
    """A refresh idles the pins from the last burst before it to the first one after it.

    The last read is followed by tRTP, tRP, tRFC, tRCD and CL, of which a burst and CL are its own data. Then each
    further bank group opens its row, which may take longer than a burst. Where a row ends within tFAW of its opening,
    the next row waits for the rest of tFAW.
    """
    board = load_board(name)
    p = parameters(board)
    opening = (p.bank_groups - 1) * max(0, p.tRRD_S - p.burst)
    idle = max(p.tRTP - p.burst, 0) + p.tRP + p.tRFC + p.tRCD + opening
    bursts = int(100.5 * p.tREFI / p.burst)
    refreshes = bursts * p.burst // (p.tREFI - idle)
    expected = p.tRCD + p.CL + opening + bursts * p.burst + refreshes * idle + p.controller
    row = p.row_bytes / p.burst_bytes * p.bank_groups * p.burst
    measured = ideal_reader(board, bursts * p.burst_bytes * p.channels) * p.cycle
    assert -2 * p.cycle < measured - expected < 2 * p.cycle + refreshes * p.tFAW * p.tFAW / row


def test_the_ideal_reader_of_the_kv260_reaches_95_percent() -> None:
    board = load_board("kv260")
    pins = 64 * MIB / board.memory.bytes_per_second * board.clock_mhz * 1e6
    assert pins >= 0.95 * ideal_reader(board, 64 * MIB)


@pytest.mark.parametrize("name", list_boards())
def test_the_ideal_reader_is_monotone_and_additive(name: str) -> None:
    board = load_board(name)
    rng = np.random.default_rng(3)
    sizes = sorted(int(size) for size in rng.integers(1, 4 * MIB, 20))
    times = [ideal_reader(board, size) for size in sizes]
    assert times == sorted(times)
    timing = board.memory.timing
    start = board.memory.controller_ns + timing.tRCD + timing.CL
    once = (start + timing.tRFC + 3 * timing.tRC) * board.clock_mhz / 1e3  # one latency, one refresh more or less
    for a, b in zip(sizes[::2], sizes[1::2], strict=True):
        assert abs(ideal_reader(board, a) + ideal_reader(board, b) - ideal_reader(board, a + b)) <= once


def _with(board: Board, **timing: float) -> Board:
    memory = dataclasses.replace(board.memory, timing=dataclasses.replace(board.memory.timing, **timing))
    return dataclasses.replace(board, memory=memory)


def _address(board: Board, row: int, bank: int) -> int:
    """First burst of a row in channel 0; neighbouring bank numbers lie in different groups."""
    memory = board.memory
    number, group = divmod(bank, memory.bank_groups)
    page = row * (memory.banks // memory.bank_groups) + number
    local = page * memory.row_bytes * memory.bank_groups + group * memory.burst_bytes
    return local // 256 * 256 * memory.channels + local % 256


def _per_access(board: Board, addresses: list[int]) -> float:
    """Femtoseconds of an access in the long run, when all are asked for at once."""
    burst = board.memory.burst_bytes
    with Dram(parameters(board)) as dram:
        times = [int(dram.read(address, 1, burst, 0)[0]) for address in addresses]
    return (times[-1] - times[len(times) // 5]) / (len(times) - 1 - len(times) // 5) * parameters(board).cycle


def _row_cycle(p: Parameters) -> int:
    """From one activate of a bank to the next, for one read each time."""
    return max(p.tRC, p.tRAS + p.tRP, p.tRCD + max(p.tRTP, p.burst) + p.tRP)


def _row_interval(p: Parameters) -> float:
    """From one activate to the next, in all banks of a channel in turn."""
    return max(p.burst, p.tRRD_S, p.tRRD_L / p.bank_groups, p.tFAW / 4, _row_cycle(p) / p.banks)


@pytest.mark.parametrize("name", list_boards())
def test_new_rows_cost_what_the_parameters_say(name: str) -> None:
    board = _with(load_board(name), tREFI=1e9)
    p = parameters(board)
    one_bank = [_address(board, row, 0) for row in range(1000)]
    assert _per_access(board, one_bank) == pytest.approx(_row_cycle(p), rel=2e-3)
    in_turn = [_address(board, row, bank) for row in range(200) for bank in range(p.banks)]
    assert _per_access(board, in_turn) == pytest.approx(_row_interval(p), rel=5e-3)


@pytest.mark.parametrize("name", list_boards())
def test_random_bursts_lie_between_a_row_at_a_time_and_all_banks_in_turn(name: str) -> None:
    """A bank that was used k accesses ago makes an access wait for the rest of its row cycle, by chance 1 in banks.

    The sum of these waits is more than what in-order service loses, since waiting for one bank also ages the others.
    Likewise for tRRD_L by chance 1 in bank groups.
    """
    board = load_board(name)
    p = parameters(board)
    rng = np.random.default_rng(1)
    rows = board.memory.size_bytes // (p.row_bytes * p.banks * p.channels)
    addresses = [_address(board, int(rng.integers(rows)), int(rng.integers(p.banks))) for _ in range(4000)]
    interval, cycle = _row_interval(p), _row_cycle(p)
    waits = sum(max(0, cycle - k * interval) for k in range(1, p.banks)) / p.banks
    waits += max(0, p.tRRD_L - interval) / p.bank_groups
    refresh = 1 - (p.tRFC + p.tRP + cycle) / p.tREFI
    assert interval < _per_access(board, addresses) < (interval + waits) / refresh

    one_after_another, now = addresses[:1000], 0
    with Dram(p) as dram:
        for address in one_after_another:
            now = int(dram.read(address, 1, p.burst_bytes, now)[0])
    access = p.tRP + p.tRCD + p.CL + p.burst + p.controller
    assert 0.95 * access < now * p.cycle / 1000 < (access + 2 * p.cycle) / refresh


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
