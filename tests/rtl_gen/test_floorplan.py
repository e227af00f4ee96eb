"""The floorplan: every cell a site of its own, and each row of the array beside the one before."""

from __future__ import annotations

import itertools
import re

import pytest

from boards import load_board
from moe_hw.arch import ACC_BITS, ROWS, Arch
from moe_hw.fit import arch_of
from rtl_gen.floorplan import BLOCK_RAM, BLOCK_RAM_BITS, MULTIPLIER, Place, apply, floorplan

PRESET = arch_of(load_board("ulx3s-85f"))
COLUMNS, LINES = range(4, 120), (10, 34, 58)
SUM_BANKS = PRESET.combine_elements * ACC_BITS // BLOCK_RAM_BITS


def rows(kind: str) -> list[Place]:
    places = [place for place in floorplan(PRESET) if place.type == kind and "row_" in place.cells]
    assert [place.cells for place in places] == [rf"\.array\.row_{row}\." for row in range(ROWS)]
    return places


def centre(place: Place) -> float:
    return sum(int(re.match(r"X(\d+)/", site)[1]) for site in place.sites) / len(place.sites)


def test_each_cell_of_the_preset_has_a_site_of_its_own() -> None:
    sites = [site for place in floorplan(PRESET) for site in place.sites]
    assert len(set(sites)) == len(sites) == ROWS * (PRESET.columns // 2 + 2) + 25 + SUM_BANKS
    multipliers = [site for place in floorplan(PRESET) if place.type == MULTIPLIER for site in place.sites]
    for site in multipliers:
        x, y, number = map(int, re.fullmatch(r"X(\d+)/Y(\d+)/MULT18_(\d)", site).groups())
        assert x in COLUMNS and y in LINES and number in (0, 1, 4, 5)


def test_rows_that_follow_each_other_are_neighbours() -> None:
    multipliers, banks = rows(MULTIPLIER), rows(BLOCK_RAM)
    assert max(abs(centre(a) - centre(b)) for a, b in itertools.pairwise(multipliers)) <= 11
    assert all(abs(centre(bank) - centre(row)) <= 6 for bank, row in zip(banks, multipliers, strict=True))


def test_a_smaller_array_lies_without_gaps() -> None:
    sites = [site for place in floorplan(Arch(columns=4)) if "row_" in place.cells for site in place.sites]
    assert len(set(sites)) == len(sites) == ROWS * 2


def test_what_does_not_fit_is_left_to_the_placer() -> None:
    assert floorplan(Arch(columns=16)) == ()


def test_cells_get_sites_in_the_order_of_their_numbers() -> None:
    cells = {name: {"type": MULTIPLIER, "attributes": {}} for name in ("a.post.$9_P", "a.post.$10_P", "a.poster.$1_P")}
    cells["a.post.ram"] = {"type": BLOCK_RAM, "attributes": {}}
    apply(cells, [Place(r"\.post\b", MULTIPLIER, ("first", "second", "third"))])
    assert [cell["attributes"].get("BEL") for cell in cells.values()] == ["first", "second", None, None]


def test_a_floorplan_of_another_design_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected cells MULT18X18D with .*post"):
        apply({}, [Place(r"\.post\b", MULTIPLIER, ("X4/Y10/MULT18_0",))])
