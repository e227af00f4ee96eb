"""The memory's bring-up against a model of its registers, with a chip that checks the order and the waits."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest

from boards import load_board
from host.ddr3 import Level, bring_up
from moe_hw.ddr3 import BITSLIPS, DELAYS, PHASES, REGISTERS
from moe_hw.errors import DeviceError
from sim.ddr3_chip import Ddr3Chip, parameters

MEMORY = load_board("ecpix5-85f").memory
LANES = MEMORY.data_bits // 8
ACCESS_CLOCKS = 40
"""Clocks of the chip from one access of the host to the next: far fewer than a serial line takes."""


class Model:
    """Injector, PHY and chip. A lane reads right with the settings in ``right``: pairs of bit slip and delay."""

    def __init__(self, *right: set[tuple[int, int]]):
        self.right = right
        self.chip = Ddr3Chip(parameters(MEMORY))
        self.values = dict.fromkeys(REGISTERS, 0)
        self.cells = bytes(8 * LANES)
        self.settings = [[3, 5] for _ in range(LANES)]  # whatever a session before has left
        self.seen = 0
        self.noise = random.Random(1)

    def write(self, values: Iterable[tuple[str, int]]) -> None:
        for name, value in values:
            self.values[name] = value
            self.pass_clocks(ACCESS_CLOCKS)
            if name.endswith("command_issue"):
                self._issue(int(name[len("dfii_pi")]))
            elif name == "burstdet_clr":
                self.seen = 0
            elif name.startswith("rdly"):
                for lane, (bitslip, delay) in enumerate(self.settings):
                    if self.values["dly_sel"] >> lane & 1:
                        self.settings[lane] = {
                            "rdly_dq_rst": [bitslip, 0],
                            "rdly_dq_inc": [bitslip, (delay + 1) % DELAYS],
                            "rdly_dq_bitslip_rst": [0, delay],
                            "rdly_dq_bitslip": [(bitslip + 1) % BITSLIPS, delay],
                        }[name]

    def read(self, names: Sequence[str]) -> list[int]:
        return [self.seen if name == "burstdet_seen" else self.values[name] for name in names]

    def pause(self, nanoseconds: float) -> None:
        self.pass_clocks(MEMORY.clocks(nanoseconds))

    @property
    def cke(self) -> int:
        """The host's, or the controller's, which is always on."""
        control = self.values["dfii_control"]
        return control & 1 or control >> 1 & 1

    def pass_clocks(self, clocks: int) -> None:
        for _ in range(clocks):
            self.chip.clock(self.cke, 1, 1, 1, 1, 0, 0)

    def _issue(self, phase: int) -> None:
        code, bank, address = (self.values[f"dfii_pi{phase}_{name}"] for name in ("command", "baddress", "address"))
        cs, we, cas, ras, writes, reads = (code >> bit & 1 for bit in range(6))
        for number in range(PHASES):
            cs_n = not cs if number == phase else 1
            burst = self.chip.clock(self.cke, cs_n, not ras, not cas, not we, bank, address)
            assert (burst is not None) == (number == phase and bool(writes or reads))
        words = [f"dfii_pi{number}_{{}}data_{half}" for number in range(PHASES) for half in ("low", "high")]
        if writes:
            assert phase == 1
            self.cells = b"".join(self.values[word.format("wr")].to_bytes(4, "little") for word in words)
        if reads:
            assert phase == 0 and self.values["dly_sel"] == 0
            found = bytearray(self.noise.randbytes(8 * LANES))
            for lane, setting in enumerate(self.settings):
                if tuple(setting) in self.right[lane]:
                    found[lane::LANES] = self.cells[lane::LANES]
                    self.seen |= 1 << lane
            for number, word in enumerate(words):
                self.values[word.format("rd")] = int.from_bytes(found[4 * number : 4 * number + 4], "little")


def window(bitslip: int, first: int, last: int) -> set[tuple[int, int]]:
    return {(bitslip, delay) for delay in range(first, last + 1)}


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ((window(0, 0, 0), window(3, 7, 7)), [Level(0, 0, 1), Level(3, 7, 1)]),
        ((window(2, 1, 5), window(1, 0, 7)), [Level(2, 3, 5), Level(1, 3, 8)]),
        # A wider window of another bit slip, and a second one with the same bit slip.
        ((window(0, 0, 1) | window(3, 2, 6), window(1, 0, 1) | window(1, 4, 6)), [Level(3, 4, 5), Level(1, 5, 3)]),
    ],
)
def test_each_lane_gets_the_middle_of_its_widest_window(
    right: tuple[set[tuple[int, int]], ...], expected: list[Level]
) -> None:
    model = Model(*right)
    told: list[str] = []
    assert bring_up(model, MEMORY, "port", told.append) == expected
    assert model.settings == [[level.bitslip, level.delay] for level in expected]
    assert told == ["initialising the DDR3 memory"]
    assert model.values["dfii_control"] == 1 and model.values["init_done"] == 1


def test_a_lane_that_never_reads_right_is_an_error() -> None:
    model = Model(window(0, 0, 7), set())
    expected = (
        "port: expected byte lane 1 of the DDR3 memory to bring back what was written, got other bytes with each of "
        "4 bit slips and 8 delays; check the board's supply, and load its own bitstream"
    )
    with pytest.raises(DeviceError, match=expected):
        bring_up(model, MEMORY, "port")
    assert model.values["init_done"] == 0
