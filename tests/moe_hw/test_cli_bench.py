"""``moe-hw bench`` and ``moe-hw estimate``: what they print, and what they refuse before anything is built."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from boards import Board
from host.transports import sim
from moe_hw import cli
from moe_hw.cli import bench
from moe_hw.fit import arch_of
from moe_hw.presets import PRESETS, Preset
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec
from tests.host.fake import FakeTransport
from tests.host.models import save_checkpoint
from tests.moe_hw.test_cli import fails

KEYS = [
    "cycles", "clock_mhz", "macs", "dram_bytes", "memory_limit_cycles", "ideal_reader_cycles", "compute_limit_cycles",
    "roofline_fraction", "pin_fraction", "mac_fraction", "stalls", "bit_exact", "estimate_cycles",
    "estimate_deviation", "sim_cycles_per_second", "run_seconds", "build_seconds",
]  # fmt: skip


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Board]:
    """The boards that were opened; each is a fake device. There is a preset ``tiny``."""
    boards: list[Board] = []

    def open_fake(board: Board, progress: Callable[[str], None] | None = None) -> FakeTransport:
        boards.append(board)
        return FakeTransport(arch_of(board))

    monkeypatch.setattr(sim, "open_board", open_fake)
    spec = LayerSpec(40, RouterSpec(9, 2), ExpertSpec(24))
    monkeypatch.setitem(PRESETS, "tiny", Preset(spec, 3, "something that is far larger"))
    return boards


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), "qwen2_moe")


def figures(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert cli.main(["bench", *argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return dict(json.loads(captured.out))


def test_json_has_all_figures(opened: list[Board], capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, "--model", "tiny", "--tokens", "3")
    assert list(found) == KEYS and list(found["stalls"]) == list(bench.STALLS)
    assert found["bit_exact"] is True
    assert found["cycles"] == 5000 + 7 * 3  # as the fake device says
    assert found["macs"] == 3 * 40 * (9 + 2 * 3 * 24)
    limit = max(found["ideal_reader_cycles"], found["compute_limit_cycles"])
    assert found["roofline_fraction"] == pytest.approx(limit / found["cycles"])
    assert found["pin_fraction"] == pytest.approx(found["memory_limit_cycles"] / found["cycles"], abs=1e-3)
    assert found["mac_fraction"] == pytest.approx(found["macs"] / (found["cycles"] * 32 * 8))
    assert found["estimate_deviation"] == pytest.approx(found["estimate_cycles"] / found["cycles"] - 1)


def test_layers_add_up(opened: list[Board], capsys: pytest.CaptureFixture[str]) -> None:
    one, three = (figures(capsys, "--model", "tiny", "--layers", count) for count in ("1", "3"))
    assert three["cycles"] == 3 * one["cycles"] and three["macs"] == 3 * one["macs"]


def test_the_table_shows_them_and_what_the_preset_leaves_out(
    opened: list[Board], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--model", "tiny"]) == 0
    out = capsys.readouterr().out
    assert re.match(r"ulx3s-85f, tiny \(something else stands in for: something .*\): 1 of 3 MoE layers", out)
    assert all(re.search(rf"^ *{key} ", out, re.MULTILINE) for key in (*KEYS, *bench.STALLS) if key != "stalls")


def test_a_checkpoint_is_quantised(
    opened: list[Board], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(capsys, "--model", str(checkpoint), "--layers", "2", "--tokens", "5", "--format", "int8")
    assert found["bit_exact"] is True and found["macs"] == 2 * 5 * 40 * (5 + 3 * (2 * 24 + 33))


def test_columns_replace_those_of_the_board(opened: list[Board], capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, "--model", "tiny", "--columns", "4")
    assert found["bit_exact"] is True and opened[0].accelerator["columns"] == 4


def test_a_wrong_output_is_told_and_fails(
    opened: list[Board], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import moe_hw.twins.layer

    honest = moe_hw.twins.layer.golden

    def other(*args: Any) -> Any:
        result = honest(*args)
        result.output[-1, 3] = torch.nextafter(result.output[-1, 3], torch.tensor(9.0))
        return result

    monkeypatch.setattr(bench, "SAMPLE", 2)
    monkeypatch.setattr(moe_hw.twins.layer, "golden", other)
    assert cli.main(["bench", "--model", "tiny", "--tokens", "4", "--json"]) == 5
    captured = capsys.readouterr()
    assert json.loads(captured.out)["bit_exact"] is False
    assert "outputs differ from the golden model" in captured.err


@pytest.mark.parametrize("command", ["bench", "estimate"])
def test_refusals(
    opened: list[Board], command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path
) -> None:
    fails(capsys, 2, "got 'mixtral'; did you mean mixtral-8x7b", command, "--model", "mixtral")
    fails(capsys, 4, "expected a checkpoint directory", command, "--model", tmp_path / "none")
    fails(capsys, 4, "expected config.json, got none", command, "--model", tmp_path)
    fails(capsys, 2, "expected int2 or .* or mxfp4, got 'fp4'", command, "--model", "tiny", "--format", "fp4")
    fails(capsys, 2, "did you mean kv260", command, "--model", "tiny", "--board", "kv26")
    fails(capsys, 2, "columns: expected a power of two", command, "--model", "tiny", "--columns", "5")
    fails(capsys, 2, "at most 156 multipliers", command, "--model", "tiny", "--columns", "32")
    fails(capsys, 5, r"1 MoE layers of mixtral-8x7b need [\d,]+ bytes in int4, the board has 33,554,432",
          command, "--model", "mixtral-8x7b")  # fmt: skip
    for tokens in ("0", "-1", "many"):
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--model", "tiny", "--tokens", tokens])
        assert end.value.code == 2 and "expected a whole number of at least 1" in capsys.readouterr().err
    assert opened == []


def test_more_layers_than_the_model_has(opened: list[Board], capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, 2, "--layers: expected at most the 3 of tiny, got 4", "bench", "--model", "tiny", "--layers", "4")


def test_estimate_of_a_whole_model(
    opened: list[Board], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["estimate", "--model", str(checkpoint), "--tokens", "4"]) == 0
    assert "2 MoE layers, 4 tokens" in capsys.readouterr().out
    assert cli.main(["estimate", "--board", "kv260", "--model", "qwen3-30b-a3b"]) == 0
    out = capsys.readouterr().out
    values = {line.split()[0]: line.split()[1].replace(",", "") for line in out.splitlines()[3:-2]}
    assert "48 MoE layers" in out and re.search(r"limited by +memory", out)
    assert float(values["seconds"]) == pytest.approx(int(values["cycles"]) / 300e6, rel=1e-4)
    assert float(values["tokens/s"]) == pytest.approx(1 / float(values["seconds"]), rel=1e-3)
    # 0.99 GB a token at 19.2 GB/s, 95 % of it.
    assert float(values["tokens/s"]) == pytest.approx(18.3, rel=0.02)
    assert "holds only some of the layers" in out and "are not included" in out
    assert opened == []
