"""Sites for an accelerator's multipliers, row banks and sums in an LFE5U-85F; all else finds its place around them.

The placer alone scatters the multipliers over the three rows of the chip that have any, without regard to what feeds
which: a path to one that lies far away is the slowest of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from moe_hw.arch import ROWS, Arch

MULTIPLIER, BLOCK_RAM = "MULT18X18D", "DP16KD"
BLOCK_RAM_BITS = 16 * 1024
"""What a block RAM holds of words of at most eight bits; a ninth bit is for wider ones."""

OTHERS = (
    ("combine", 4), ("post", 6), ("scheduler", 2), ("router", 6), ("sequencer", 1), ("streamer", 2), ("command", 4)
)  # fmt: skip
"""Blocks with multipliers of their own and how many sites they get, from the end of the array on."""

_TILES_X = tuple(4 + 9 * tile + (tile > 6) * 2 for tile in range(13))
"""First column of each of the 13 DSP and EBR tiles of a row; the clock's spine is among them."""

_DSP_ROWS = (10, 34, 58)
_DSP_OFFSETS = (0, 1, 4, 5)
"""Columns, within a tile, of its multipliers: MULT18_0, MULT18_1, MULT18_4 and MULT18_5."""

_EBR_ROWS = (22, 46)
_EBR_OFFSETS = (0, 2, 4, 6)

_SUM_ROWS, _SUM_TILES = (70, 82), range(5, 11)
"""Where the combine buffer is: beyond the end of the array."""


@dataclass(frozen=True)
class Place:
    """Sites for some cells.

    Attributes:
        cells: regular expression that is found in their names in the flattened netlist.
        type: of the cells.
        sites: nextpnr's names of the BELs, for the cells in the order of their names.
    """

    cells: str
    type: str
    sites: tuple[str, ...]


def floorplan(arch: Arch) -> tuple[Place, ...]:
    """Sites for an accelerator of one channel: the array as a snake from the chip's lower left corner, then the rest.

    None if there are more multipliers in the array than sites; and none for row banks of several block RAMs.
    """
    sites = list(_multiplier_sites())
    per_row = arch.columns // 2
    if ROWS * per_row > len(sites) or arch.channels != 1:
        return ()
    bank_bits = max(arch.columns * arch.expert_beats, 8 * arch.vector_blocks)
    places = []
    for row in range(ROWS):
        inside = rf"\.array\.row_{row}\."
        places.append(Place(inside, MULTIPLIER, tuple(sites[row * per_row : (row + 1) * per_row])))
        if per_row == len(_DSP_OFFSETS) and bank_bits <= BLOCK_RAM_BITS:
            places.append(Place(inside, BLOCK_RAM, _bank_sites(row)))
    free = iter(sites[ROWS * per_row :])
    for block, count in OTHERS:
        places.append(Place(rf"\.{block}\b", MULTIPLIER, tuple(islice(free, count))))
    places.append(Place(r"\.combine\.sums\.", BLOCK_RAM, _sum_sites()))
    return tuple(places)


def apply(cells: dict[str, Any], places: Sequence[Place]) -> None:
    """Give cells of a netlist, as Yosys' ``write_json`` writes them, their sites; what has none left stays free.

    Raises:
        ValueError: there is no such cell: the floorplan is of another design.
    """
    by_type: dict[str, list[str]] = {}
    for name, cell in cells.items():
        by_type.setdefault(cell["type"], []).append(name)
    for place in places:
        names = sorted((name for name in by_type.get(place.type, ()) if re.search(place.cells, name)), key=_natural)
        if not names:
            raise ValueError(f"floorplan: expected cells {place.type} with {place.cells} in their names, got none")
        for name, site in zip(names, place.sites, strict=False):
            cells[name]["attributes"]["BEL"] = site


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that orders numbers in names by their value."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _multiplier_sites() -> Iterator[str]:
    """To the right, back to the left one row higher, and to the right again."""
    for number, y in enumerate(_DSP_ROWS):
        sites = [(x + offset, offset) for x in _TILES_X for offset in _DSP_OFFSETS]
        for x, offset in reversed(sites) if number % 2 else sites:
            yield f"X{x}/Y{y}/MULT18_{offset}"


def _bank_sites(row: int) -> tuple[str, str]:
    """The two rows of the array above each other share a tile between them; the third has the next row of tiles."""
    tiles = len(_TILES_X)
    line, tile = divmod(row, tiles)
    if line == 1:
        tile = tiles - 1 - tile
    y = _EBR_ROWS[line // 2]
    first = 2 * (line % 2)
    left, right = (_bank_site(tile, y, number) for number in (first, first + 1))
    return left, right


def _sum_sites() -> tuple[str, ...]:
    return tuple(_bank_site(tile, y, number) for tile in _SUM_TILES for y in _SUM_ROWS for number in range(4))


def _bank_site(tile: int, y: int, number: int) -> str:
    return f"X{_TILES_X[tile] + _EBR_OFFSETS[number]}/Y{y}/EBR{number}"
