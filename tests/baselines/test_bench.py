"""The benchmark rows of ``bench.json``: the limits that they have to reach, and what they were when last recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_hw import cli

BASELINE = json.loads((Path(__file__).parent / "bench.json").read_text())


def rows() -> list[Any]:
    """All rows; those that take minutes are run by ``make bench`` only."""
    return [
        pytest.param(
            row,
            id=f"{row['board']}-{row['model']}-{row['tokens']}-{row['format']}",
            marks=[] if row.get("in_make_test") else [pytest.mark.bench],
        )
        for row in BASELINE["rows"]
    ]


def bench(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run ``moe-hw bench``, show what it prints, and check what holds of every run."""
    argv = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    assert cli.main(["bench", *argv, "--json"]) == 0
    text = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{' '.join(argv)}\n{text}", end="")
    found = json.loads(text)
    assert found["bit_exact"] is True
    assert sum(found["stalls"].values()) == found["cycles"]
    assert abs(found["estimate_deviation"]) <= BASELINE["estimate_tolerance"]
    return found


@pytest.mark.parametrize("row", rows())
def test_row(row: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(capsys, **{name: row[name] for name in ("board", "model", "tokens", "format")})
    for figure, least in row["required"].items():
        assert found[figure] >= least, f"{figure}: expected at least {least}, got {found[figure]:.4f}"
    # Faster is a change, too: record it in bench.json.
    assert found["cycles"] == pytest.approx(row["cycles"], rel=BASELINE["cycles_tolerance"])
    for figure in ("roofline_fraction", "pin_fraction"):
        assert found[figure] == pytest.approx(row[figure], rel=BASELINE["cycles_tolerance"])


@pytest.mark.bench
def test_four_times_the_columns_are_three_point_six_times_as_fast(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a batch that the multipliers bound: some 64 tokens for each expert."""
    cycles = []
    for columns in (16, 64):
        found = bench(capsys, board="zcu102", model="granite-1b-a400m", tokens=256, columns=columns)
        assert found["compute_limit_cycles"] > 3 * found["ideal_reader_cycles"]
        cycles.append(found["cycles"])
    assert cycles[0] >= 3.6 * cycles[1], cycles
