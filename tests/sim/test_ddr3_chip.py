"""The DDR3 chip's model: a session that keeps all rules, and for each rule one that breaks it by one clock."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

import pytest

from boards import load_board
from sim.ddr3_chip import Burst, Ddr3Chip, Parameters, parameters

TIMES = {
    "CL": 6, "CWL": 5, "tRCD": 3, "tRP": 3, "tRAS": 7, "tRC": 11, "tRRD": 4, "tFAW": 20, "tCCD": 4, "tRFC": 30,
    "tREFI": 200, "tWR": 3, "tWTR": 4, "tRTP": 4, "tRTW": 2,
}  # fmt: skip
START = {"tMRD": 4, "tMOD": 12, "tXPR": 32, "tZQinit": 50, "tZQCS": 10, "tDLLK": 60, "power_up": 40}
BANKS, ROWS, COLUMNS = 8, 64, 128
ALL = 1 << 10
MODE, REFRESH, PRECHARGE, ACTIVATE, WRITE, READ, ZQ, NONE = range(8)
MODES = ((2, 0), (3, 0), (1, 0), (0, 2 << 4 | 1 << 8))


class Session:
    """Commands for a small chip, a clock each; ``now`` is the clock of the last one."""

    def __init__(self) -> None:
        self.chip = Ddr3Chip(Parameters(**TIMES, **START, banks=BANKS, rows=ROWS, columns=COLUMNS))
        self.now = 0

    def clock(self, code: int = NONE, ba: int = 0, a: int = 0, cke: int = 1) -> Burst | None:
        self.now += 1
        return self.chip.clock(cke, 0, code >> 2 & 1, code >> 1 & 1, code & 1, ba, a)

    def after(self, clocks: int, code: int = NONE, ba: int = 0, a: int = 0) -> Burst | None:
        """A command ``clocks`` after the last one."""
        for _ in range(clocks - 1):
            self.clock()
        return self.clock(code, ba, a)

    def enable(self, power_up: int = START["power_up"]) -> None:
        for _ in range(power_up - 1):
            self.clock(cke=0)
        self.clock()

    def initialise(self, modes: tuple[tuple[int, int], ...] = MODES) -> None:
        self.enable()
        self.after(START["tXPR"], MODE, *modes[0])
        for mode in modes[1:]:
            self.after(START["tMRD"], MODE, *mode)
        self.after(START["tMOD"], ZQ, a=ALL)
        self.after(START["tDLLK"])


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.chip.close()


def test_a_session_that_keeps_all_rules(session: Session) -> None:
    session.initialise()
    session.clock(REFRESH)
    session.after(TIMES["tRFC"], ACTIVATE, 3, 5)
    assert session.after(TIMES["tRCD"], WRITE, 3, 16) == Burst(True, (5 * BANKS + 3) * COLUMNS + 16)
    assert session.after(TIMES["CWL"] + 4 + TIMES["tWTR"], READ, 3, 8) == Burst(False, (5 * BANKS + 3) * COLUMNS + 8)
    session.after(TIMES["tCCD"], READ, 3, 0)
    session.after(TIMES["CL"] + 4 + TIMES["tRTW"] - TIMES["CWL"], WRITE, 3, 0)
    session.after(TIMES["CWL"] + 4 + TIMES["tWR"], PRECHARGE, 3)
    session.after(TIMES["tRP"], ZQ)
    session.after(START["tZQCS"], ACTIVATE, 0, 1)
    for bank in (1, 2, 3):
        session.after(TIMES["tRRD"], ACTIVATE, bank, 1)
    session.after(TIMES["tFAW"] - 3 * TIMES["tRRD"], ACTIVATE, 4, 1)
    session.after(TIMES["tRAS"], PRECHARGE, a=ALL)
    session.after(TIMES["tRC"] - TIMES["tRAS"], REFRESH)


def initialised(*commands: tuple[int, ...]) -> Callable[[Session], None]:
    """After the initialisation: distance, command and its operands."""

    def act(session: Session) -> None:
        session.initialise()
        for distance, *command in commands:
            session.after(distance, *command)

    return act


def modes(**values: int) -> Callable[[Session], None]:
    """An initialisation with other mode registers."""
    return lambda session: session.initialise(
        tuple((number, values.get(f"mr{number}", value)) for number, value in MODES)
    )


OPEN = (1, ACTIVATE, 0, 1)
BROKEN = {
    "power-up: CKE": lambda session: session.enable(START["power_up"] - 1),
    "tXPR: MODE": lambda session: (session.enable(), session.after(START["tXPR"] - 1, MODE, 2)),
    "tMRD: MODE": initialised((1, MODE, 3), (3, MODE, 3)),
    "tMOD: REFRESH": initialised((1, MODE, 3), (11, REFRESH)),
    "tZQ: REFRESH": initialised((1, ZQ, 0, ALL), (49, REFRESH)),
    "tDLLK: READ of bank 0": initialised((1, MODE, *MODES[3]), (12, ACTIVATE), (47, READ)),
    "CKE: CKE low": lambda session: (session.initialise(), session.clock(cke=0)),
    "mode register 0": modes(mr0=3 << 4),
    "mode register 1": modes(mr1=1),
    "mode register 2": modes(mr2=1 << 3),
    "mode register 3": modes(mr3=4),
    "initialisation: ACTIVATE of bank 0": lambda session: (session.enable(), session.after(START["tXPR"], ACTIVATE)),
    "ZQ: ZQ": lambda session: (session.enable(), session.after(START["tXPR"], ZQ)),
    "tRCD: READ of bank 0": initialised(OPEN, (2, READ)),
    "tRP: ACTIVATE of bank 0": initialised(OPEN, (8, PRECHARGE), (2, ACTIVATE)),
    "tRAS: PRECHARGE of bank 0": initialised(OPEN, (6, PRECHARGE)),
    "tRC: ACTIVATE of bank 0": initialised(OPEN, (7, PRECHARGE), (3, ACTIVATE)),
    "tRRD: ACTIVATE of bank 1": initialised(OPEN, (3, ACTIVATE, 1)),
    "tFAW: ACTIVATE of bank 4": initialised(OPEN, *((4, ACTIVATE, bank) for bank in (1, 2, 3)), (7, ACTIVATE, 4)),
    "tCCD: READ of bank 0": initialised(OPEN, (3, READ), (3, READ)),
    "tCCD: WRITE of bank 0": initialised(OPEN, (3, WRITE), (3, WRITE)),
    "tRTW: WRITE of bank 0": initialised(OPEN, (3, READ), (6, WRITE)),
    "tWTR: READ of bank 0": initialised(OPEN, (3, WRITE), (12, READ)),
    "tWR: PRECHARGE of bank 0": initialised(OPEN, (3, WRITE), (11, PRECHARGE)),
    "tRTP: PRECHARGE of bank 0": initialised(OPEN, (7, READ), (3, PRECHARGE)),
    "tRFC: ACTIVATE of bank 0": initialised((1, REFRESH), (29, ACTIVATE)),
    "tREFI: a clock": initialised((1, REFRESH), (200 * 10, NONE)),
    "open row: ACTIVATE of bank 0": initialised(OPEN, (10, ACTIVATE)),
    "open row: REFRESH": initialised(OPEN, (10, REFRESH)),
    "closed row: READ of bank 1": initialised(OPEN, (3, READ, 1)),
    "row: ACTIVATE of bank 0": initialised((1, ACTIVATE, 0, ROWS)),
    "column: READ of bank 0": initialised(OPEN, (3, READ, 0, COLUMNS)),
    "command: READ of bank 0": initialised(OPEN, (3, READ, 0, ALL)),
}
"""By the beginning of the message."""


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_rule_is_named(session: Session, message: str) -> None:
    with pytest.raises(AssertionError, match=f"^{re.escape(message)}"):
        BROKEN[message](session)


def test_both_commands_and_their_clocks_are_named(session: Session) -> None:
    session.initialise()
    session.clock(ACTIVATE, 2, 1)
    now = session.now
    expected = (
        f"tRCD: READ of bank 2 in clock {now + 2}, ACTIVATE of bank 2 in clock {now}: "
        "expected at least 3 clocks between them, got 2"
    )
    with pytest.raises(AssertionError, match=re.escape(expected)):
        session.after(2, READ, 2)


def test_parameters_of_a_board() -> None:
    memory = load_board("ecpix5-85f").memory
    found = parameters(memory)
    assert (found.CL, found.CWL, found.tRCD, found.tRC, found.tRFC, found.tREFI) == (6, 5, 3, 9, 47, 1404)
    assert (found.tMOD, found.tXPR, found.power_up) == (12, 49, 90_000)
    assert (found.banks, found.rows, found.columns) == (8, 32768, 1024)
    faster = parameters(dataclasses.replace(memory, mt_per_s=800.0))
    assert (faster.tRCD, faster.tREFI, faster.power_up) == (6, 3120, 200_000)
