"""Formats of a model's layers, in a word and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_hw import cli
from moe_hw.cli.plan import formats_of
from moe_hw.errors import UsageError
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec
from moe_hw.stored import open_image
from tests.host.models import save_checkpoint


def specs(count: int) -> list[LayerSpec]:
    return [LayerSpec(32, RouterSpec(2 + number, 1), ExpertSpec(32)) for number in range(count)]


def test_one_format_for_all() -> None:
    assert formats_of("int8", specs(2)) == ["int8", "int8"]
    assert formats_of("int4,0-1=int8", specs(1)) == ["int4,0-1=int8"]
    with pytest.raises(UsageError, match="'int4,2=int8': expected experts 0 to 1"):
        formats_of("int4,2=int8", specs(2)[::-1])


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_a_file_of_formats(tmp_path: Path, suffix: str) -> None:
    plan = tmp_path / f"plan.{suffix}"
    plan.write_text("default: int4\n2: int8\n0: int4,1=int6\n")
    assert formats_of(str(plan), specs(4)) == ["int4,1=int6", "int4", "int8", "int4"]
    plan.write_text("0: int8\n1: int2\n")
    assert formats_of(str(plan), specs(2)) == ["int8", "int2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default: int7\n", "weight format: expected int2 or .*, got 'int7'"),
        ("default: int4\n4: int8\n", "expected MoE layers 0 to 3 or default, got 4"),
        ("default: int4\nall: int8\n", "expected MoE layers 0 to 3 or default, got 'all'"),
        ("0: int8\n", "expected a format for MoE layer 1 or default, got None"),
        ("default: 4\n", "expected a format for MoE layer 0 or default, got 4"),
        ("int4\n", "expected lines of a layer's number and its format, got 'int4'"),
        ("default: [\n", "expected a YAML file of formats, got: while parsing"),
    ],
)
def test_a_file_that_is_no_plan(tmp_path: Path, text: str, message: str) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(text)
    with pytest.raises(UsageError, match=message):
        formats_of(str(plan), specs(4))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"plan\.yaml: expected a YAML file of formats, got: .*No such file"):
        formats_of(str(tmp_path / "plan.yaml"), specs(4))


def test_a_plan_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, plan = save_checkpoint(tmp_path / "model"), tmp_path / "plan.yaml"
    arguments = ["pack", "--jobs", "1", "--model", str(model), "-o", str(tmp_path / "image"), "--format", str(plan)]
    plan.write_text("default: int4\n1: int3,0=int8\n")
    assert cli.main(arguments) == 0
    layers = open_image(tmp_path / "image").layers
    assert [layer.weight_format for layer in layers] == ["int4", "int3,0=int8"]
    assert set(layers[0].widths) == {4} and layers[1].widths[:2] == (8, 3)
    plan.write_text("default: int4,9=int8\n")
    assert cli.main(arguments) == 2
    assert "expected experts 0 to 5 in ascending order, got 9-9" in capsys.readouterr().err
    assert cli.main([*arguments[:-1], "int4,9=int8"]) == 2
