"""The SDRAM chip's model: a session that keeps all rules, and for each rule one that breaks it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from boards import load_board
from sim.sdram_chip import Parameters, SdramChip, parameters

CL, TRCD, TRP, TRAS, TRC, TRRD, TWR, TRFC, TMRD = 3, 2, 2, 5, 8, 2, 2, 8, 2
POWER_UP, REFRESHES, ROWS, INTERVAL = 20, 8, 64, 100
BANKS, COLUMNS = 4, 32
ALL = 1 << 10
BURST_OF_2 = CL << 4 | 1


class Session:
    """Commands for a chip of few rows, a cycle each; ``now`` is the cycle of the last one."""

    def __init__(self) -> None:
        times = {"CL": CL, "tRCD": TRCD, "tRP": TRP, "tRAS": TRAS, "tRC": TRC, "tRRD": TRRD, "tWR": TWR, "tRFC": TRFC}
        sizes = {"banks": BANKS, "rows": ROWS, "columns": COLUMNS, "refresh_window": ROWS * INTERVAL}
        start = {"tMRD": TMRD, "power_up": POWER_UP, "power_up_refreshes": REFRESHES}
        self.chip = SdramChip(Parameters(**times, **start, **sizes))
        self.now = 0
        self.shown: int | None = None

    def clock(
        self, code: int = 7, ba: int = 0, a: int = 0, dqm: int = 0, dq: int | None = None, clk_en: int = 1
    ) -> None:
        self.now += 1
        self.shown = self.chip.clock(clk_en, 0, code >> 2 & 1, code >> 1 & 1, code & 1, ba, a, dqm, dq)

    def wait(self, cycle: int) -> None:
        """No commands until the next one is in ``cycle``."""
        while self.now < cycle - 1:
            self.clock()

    def after(self, clocks: int) -> None:
        """The next command comes ``clocks`` after the last one."""
        self.wait(self.now + clocks)

    def mode(self, value: int = BURST_OF_2) -> None:
        self.clock(0, a=value)

    def refresh(self) -> None:
        self.clock(1)

    def precharge(self, bank: int | None = None) -> None:
        self.clock(2, bank or 0, ALL if bank is None else 0)

    def activate(self, bank: int = 0, row: int = 0) -> None:
        self.clock(3, bank, row)

    def write(self, first: int, second: int, bank: int = 0, column: int = 0, dqm: tuple[int, int] = (0, 0)) -> None:
        self.clock(4, bank, column, dqm=dqm[0], dq=first)
        self.clock(dqm=dqm[1], dq=second)

    def read(self, bank: int = 0, column: int = 0) -> None:
        self.clock(5, bank, column)

    def words(self, count: int) -> list[int | None]:
        """What the pins show in the next ``count`` cycles."""
        out = []
        for _ in range(count):
            self.clock()
            out.append(self.shown)
        return out

    def initialise(self, mode: int = BURST_OF_2, refreshes: int = REFRESHES) -> None:
        self.wait(POWER_UP)
        self.precharge()
        self.after(TRP)
        for _ in range(refreshes):
            self.refresh()
            self.after(TRFC)
        self.mode(mode)
        self.after(TMRD)


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session()
    yield made
    made.chip.close()


@pytest.fixture
def ready(session: Session) -> Session:
    session.initialise()
    return session


def test_words_come_back_at_the_latency_of_the_mode_register(ready: Session) -> None:
    ready.activate(2, 5)
    ready.after(TRCD)
    ready.write(0x1234, 0xABCD, 2, 6)
    ready.read(2, 6)  # the write's last word was a clock before
    assert ready.words(4) == [None, 0x1234, 0xABCD, None]
    ready.clock(dqm=0)
    place = (5 * BANKS + 2) * COLUMNS + 6
    assert ready.chip.memory[place : place + 2].tolist() == [0x1234, 0xABCD]


def test_a_burst_wraps_within_its_columns(session: Session) -> None:
    session.initialise(CL << 4 | 2)
    session.chip.memory[:8] = np.arange(8)
    session.activate()
    session.after(TRCD)
    session.read(0, 6)
    assert session.words(6) == [None, 6, 7, 4, 5, None]


def test_reads_follow_each_other_without_a_pause(ready: Session) -> None:
    ready.chip.memory[:COLUMNS] = np.arange(COLUMNS)
    ready.activate()
    ready.after(TRCD)
    seen = []
    for column in (0, 8, 2):
        ready.read(0, column)
        seen.append(ready.shown)
        ready.clock()
        seen.append(ready.shown)
    seen += ready.words(3)
    assert seen == [None, None, 0, 1, 8, 9, 2, 3, None]


def test_masks_keep_bytes(ready: Session) -> None:
    ready.activate()
    ready.after(TRCD)
    ready.write(0x1111, 0x2222)
    ready.write(0x3344, 0x5566, dqm=(1, 2))
    assert ready.chip.memory[:2].tolist() == [0x3311, 0x2266]
    ready.clock(4, dqm=3)  # not driven, but masked
    ready.clock(dqm=3)
    assert ready.chip.memory[:2].tolist() == [0x3311, 0x2266]


def test_masks_of_reads_count_two_edges_later(ready: Session) -> None:
    ready.chip.memory[:2] = [7, 8]
    ready.activate()
    ready.after(TRCD)
    ready.read()
    ready.clock(dqm=3)
    ready.clock()
    assert ready.shown is None
    ready.clock()
    assert ready.shown == 8


def test_memory_survives_a_reset(ready: Session) -> None:
    ready.activate()
    ready.after(TRCD)
    ready.write(1, 2)
    ready.chip.reset()
    ready.now = 0
    ready.initialise()
    ready.activate()
    ready.after(TRCD)
    ready.read()
    assert ready.words(3) == [None, 1, 2]


def test_refreshes_in_time_are_enough(ready: Session) -> None:
    start = ready.now
    for number in range(3 * ROWS):
        ready.wait(start + (number + 1) * INTERVAL - number % 2)
        ready.refresh()


def test_the_chip_of_the_board() -> None:
    p = parameters(load_board("ulx3s-85f").memory)
    assert [getattr(p, name) for name in ("CL", "tRCD", "tRP", "tRAS", "tRC", "tRRD", "tWR", "tRFC")] == [
        CL, TRCD, TRP, TRAS, TRC, TRRD, TWR, TRFC,
    ]  # fmt: skip
    assert (p.banks, p.rows, p.columns) == (4, 8192, 512)
    assert p.power_up == 26600 and p.refresh_window == 8_512_000


# ---- each rule, broken by one clock; the message has the rule, the command and both cycles ----


def broken(session: Session, rule: str, command: str, earlier: str, distance: int) -> None:
    """The last command broke ``rule``, ``distance`` clocks after ``earlier``."""
    with pytest.raises(AssertionError) as caught:
        session.clock()
    now = session.now - 1
    assert str(caught.value).startswith(
        f"{rule}: {command} in cycle {now}, {earlier} in cycle {now - distance}: expected "
    )


def quietly(action, *arguments: object) -> None:
    """A command that breaks a rule: its own call raises, too."""
    with pytest.raises(AssertionError):
        action(*arguments)


DISTANCES = {
    "tRCD": (TRCD, "READ of bank 1", "ACTIVATE of bank 1"),
    "tRP": (TRP, "ACTIVATE of bank 1", "PRECHARGE of bank 1"),
    "tRAS": (TRAS, "PRECHARGE of bank 1", "ACTIVATE of bank 1"),
    "tRRD": (TRRD, "ACTIVATE of bank 2", "ACTIVATE of bank 1"),
    "tRFC": (TRFC, "ACTIVATE of bank 1", "REFRESH"),
    "tMRD": (TMRD, "ACTIVATE of bank 1", "MODE"),
}


@pytest.mark.parametrize("rule", DISTANCES)
@pytest.mark.parametrize("early", [0, 1])
def test_distances(ready: Session, rule: str, early: int) -> None:
    clocks, command, earlier = DISTANCES[rule]
    second = {
        "tRCD": lambda: ready.read(1), "tRP": lambda: ready.activate(1), "tRAS": lambda: ready.precharge(1),
        "tRRD": lambda: ready.activate(2), "tRFC": lambda: ready.activate(1), "tMRD": lambda: ready.activate(1),
    }[rule]  # fmt: skip
    if rule == "tRP":
        ready.activate(1)
        ready.after(TRC)
        ready.precharge(1)
    elif rule == "tRFC":
        ready.refresh()
    elif rule == "tMRD":
        ready.mode()
    else:
        ready.activate(1)
    ready.after(clocks - early)
    if early:
        quietly(second)
        broken(ready, rule, command, earlier, clocks - early)
    else:
        second()


@pytest.mark.parametrize("early", [0, 1])
def test_row_cycle(early: int, ready: Session) -> None:
    ready.activate(1)
    ready.after(TRAS)
    ready.precharge(1)
    ready.after(TRC - TRAS - early)
    if early:
        quietly(ready.activate, 1)
        broken(ready, "tRC", "ACTIVATE of bank 1", "ACTIVATE of bank 1", TRC - 1)
    else:
        ready.activate(1)


@pytest.mark.parametrize("bank", [1, None])
@pytest.mark.parametrize("early", [0, 1])
def test_write_recovery(ready: Session, bank: int | None, early: int) -> None:
    ready.activate(1)
    ready.after(TRAS)
    ready.write(1, 2, 1)
    ready.after(TWR - early)
    if early:
        quietly(ready.precharge, bank)
        broken(ready, "tWR", "PRECHARGE of bank 1", "last word of WRITE of bank 1", TWR - 1)
    else:
        ready.precharge(bank)


def test_write_cut_by_a_precharge(ready: Session) -> None:
    ready.activate(1)
    ready.after(TRAS)
    ready.clock(4, 1, dq=1)
    with pytest.raises(AssertionError, match="tWR: PRECHARGE of bank 1"):
        ready.clock(2, 1, dq=2)


def test_refresh_needs_precharged_banks(ready: Session) -> None:
    ready.activate(3)
    ready.after(TRC)
    quietly(ready.refresh)
    broken(ready, "open row", "REFRESH", "ACTIVATE of bank 3", TRC)


def test_refresh_after_a_precharge(ready: Session) -> None:
    ready.activate(3)
    ready.after(TRC)
    ready.precharge()
    quietly(ready.refresh)
    broken(ready, "tRP", "REFRESH", "PRECHARGE of bank 3", 1)


def test_refresh_after_an_activate(ready: Session) -> None:
    ready.activate(3)
    ready.after(TRAS)
    ready.precharge()
    ready.after(TRP)
    quietly(ready.refresh)
    broken(ready, "tRC", "REFRESH", "ACTIVATE of bank 3", TRAS + TRP)


def test_activate_of_an_open_bank(ready: Session) -> None:
    ready.activate(3)
    ready.after(TRC)
    quietly(ready.activate, 3, 1)
    broken(ready, "open row", "ACTIVATE of bank 3", "ACTIVATE of bank 3", TRC)


def test_mode_register_needs_precharged_banks(ready: Session) -> None:
    ready.activate(3)
    ready.after(TRC)
    quietly(ready.mode)
    broken(ready, "open row", "MODE", "ACTIVATE of bank 3", TRC)


@pytest.mark.parametrize("write", [False, True])
def test_column_of_a_closed_bank(ready: Session, write: bool) -> None:
    ready.activate(1)
    ready.after(TRC)
    ready.precharge(1)
    ready.after(TRP)
    if write:
        quietly(ready.write, 1, 2, 1)
        broken(ready, "closed row", "WRITE of bank 1", "PRECHARGE of bank 1", TRP)
    else:
        quietly(ready.read, 1)
        broken(ready, "closed row", "READ of bank 1", "PRECHARGE of bank 1", TRP)


@pytest.mark.parametrize("gap", [0, 1])
def test_the_data_bus_rests_between_the_chip_and_the_controller(ready: Session, gap: int) -> None:
    ready.activate()
    ready.after(TRAS)
    ready.read()
    ready.after(CL + 2 + gap)  # the last word is taken CL + 1 clocks after the read
    if gap:
        ready.write(1, 2)
    else:
        quietly(ready.write, 1, 2)
        broken(ready, "data bus", "the controller's data", "the chip's data of bank 0", 1)


def test_both_drive_the_data_bus(ready: Session) -> None:
    ready.activate()
    ready.after(TRAS)
    ready.read()
    ready.after(CL)
    with pytest.raises(AssertionError, match="data bus: the controller's data in cycle"):
        ready.clock(dq=1)


def test_a_word_that_nobody_drives(ready: Session) -> None:
    ready.activate()
    ready.after(TRCD)
    ready.clock(4, dq=1)
    quietly(ready.clock)
    broken(ready, "data bus", "a word of WRITE of bank 0", "WRITE of bank 0", 1)


def test_power_up_wait(session: Session) -> None:
    session.wait(POWER_UP - 1)
    quietly(session.precharge)
    broken(session, "initialisation", "PRECHARGE", "power-up", POWER_UP - 1)


@pytest.mark.parametrize(("command", "name"), [("refresh", "REFRESH"), ("mode", "MODE"), ("activate", "ACTIVATE")])
def test_initialisation_begins_with_a_precharge(session: Session, command: str, name: str) -> None:
    session.wait(POWER_UP)
    with pytest.raises(AssertionError, match=f"initialisation: {name}.*a precharge of all banks first"):
        getattr(session, command)()


@pytest.mark.parametrize("left_out", ["mode", "a refresh"])
def test_initialisation_is_complete(session: Session, left_out: str) -> None:
    session.wait(POWER_UP)
    session.precharge()
    session.after(TRP)
    for _ in range(REFRESHES - (left_out == "a refresh")):
        session.refresh()
        session.after(TRFC)
    if left_out != "mode":
        session.mode()
        session.after(TMRD)
    with pytest.raises(
        AssertionError, match="initialisation: ACTIVATE of bank 0 in cycle .*the mode register set and 8"
    ):
        session.activate()


@pytest.mark.parametrize(
    ("value", "rule"),
    [(2 << 4 | 1, "CL"), (4 << 4 | 1, "CL"), (CL << 4 | 7, "mode register"), (BURST_OF_2 | 8, "mode register"),
     (BURST_OF_2 | 1 << 9, "mode register")],
)  # fmt: skip
def test_mode_register_values(session: Session, value: int, rule: str) -> None:
    with pytest.raises(AssertionError, match=f"^{rule}: MODE in cycle "):
        session.initialise(value)


def test_a_late_refresh(ready: Session) -> None:
    """Eight may be late, as if refreshes had run ahead before; not a ninth."""
    start = ready.now
    with pytest.raises(
        AssertionError, match=r"^tREFI: a clock in cycle \d+, REFRESH in cycle \d+: expected 64 refreshes"
    ):
        ready.wait(start + 20 * INTERVAL)
    assert 8 * INTERVAL < ready.now - start <= 9 * INTERVAL + 1


def test_refreshes_that_are_slower_than_the_rows_need(ready: Session) -> None:
    start = ready.now
    with pytest.raises(AssertionError, match="^tREFI: "):
        for number in range(1, 20 * ROWS):
            ready.wait(start + number * (INTERVAL + 1))
            ready.refresh()


@pytest.mark.parametrize(
    ("pins", "text"),
    [({"clk_en": 0}, "clk_en: "), ({"code": 6}, "command: TERMINATE"), ({"code": 5, "a": ALL}, "no auto precharge"),
     ({"code": 5, "a": COLUMNS}, "column: READ"), ({"code": 3, "ba": 1, "a": ROWS}, "row: ACTIVATE of bank 1")],
)  # fmt: skip
def test_what_is_not_modelled_or_not_there(ready: Session, pins: dict[str, int], text: str) -> None:
    ready.activate()
    ready.after(TRCD)
    with pytest.raises(AssertionError, match=text):
        ready.clock(**pins)


def test_only_the_first_violation_is_kept(ready: Session) -> None:
    with pytest.raises(AssertionError, match="closed row") as first:
        ready.read()
    with pytest.raises(AssertionError) as second:
        ready.activate(1)
        ready.read(1)
    assert str(first.value) == str(second.value)
