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


@pytest.mark.parametrize("row", rows())
def test_row(row: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    argv = [part for key in ("board", "model", "tokens", "format") for part in (f"--{key}", str(row[key]))]
    assert cli.main(["bench", *argv, "--json"]) == 0
    text = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{' '.join(argv)}\n{text}", end="")
    found = json.loads(text)
    assert found["bit_exact"] is True
    assert sum(found["stalls"].values()) == found["cycles"]
    for figure, least in row["required"].items():
        assert found[figure] >= least, f"{figure}: expected at least {least}, got {found[figure]:.4f}"
    assert abs(found["estimate_deviation"]) <= BASELINE["estimate_tolerance"]
    # Faster is a change, too: record it in bench.json.
    assert found["cycles"] == pytest.approx(row["cycles"], rel=BASELINE["cycles_tolerance"])
    for figure in ("roofline_fraction", "pin_fraction"):
        assert found[figure] == pytest.approx(row[figure], rel=BASELINE["cycles_tolerance"])
