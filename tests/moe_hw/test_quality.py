"""What a format costs: measured on layers whose errors are known, and on the trained demo model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from moe_hw import cli
from moe_hw.demo import HELD_OUT, MODEL_DIR
from moe_hw.formats import FORMATS, largest_magnitude, largest_scale_exponent, quantise
from moe_hw.layer import random_layer
from moe_hw.quality import MeasuringDevice, Quality, decibels, tensor_errors
from moe_hw.quantised import QuantisedLayer
from tests.moe_hw.layers import SPECS, routes_of


def measured(name: str, form: str) -> Quality:
    device = MeasuringDevice()
    layer = device.load(QuantisedLayer(random_layer(SPECS[name], 3), form), "layer")
    for seed in (1, 2):
        layer(torch.randn(2, 4, layer.spec.hidden, generator=torch.Generator().manual_seed(seed)))
    return device.layers[0]


def test_decibels() -> None:
    assert decibels(100.0, 1.0) == 20 and decibels(1.0, 0.0) == math.inf and math.isnan(decibels(0.0, 0.0))


@pytest.mark.parametrize("name", ["odd", "gpt-oss", "relu"])
def test_a_layer_is_measured_over_its_calls(name: str) -> None:
    quality = measured(name, "int8")
    assert quality.tokens == quality.agreed == 16 and quality.overflows == 0
    assert quality.sqnr > 30 and quality.sqnr > measured(name, "int4").sqnr + 10
    assert quality.worst_sqnr < 50 and quality.worst_tensor.split()[-1] in ("gate", "up", "down")


def test_the_worst_tensor_is_named() -> None:
    layer = random_layer(SPECS["blocks"], 3)
    honest = layer.expert

    def spoilt(index: int) -> object:
        weights = honest(index)
        if index == 5:
            weights.up[:, 0] = 40  # the other weights of the block have few steps left
        return weights

    layer.expert = spoilt  # type: ignore[method-assign, assignment]
    errors = dict(tensor_errors(QuantisedLayer(layer, "int4")))
    assert min(errors, key=lambda name: errors[name]) != "expert 5 gate"
    assert {"shared expert down", "expert 15 up"} <= set(errors)


def test_an_overflow_is_counted() -> None:
    device = MeasuringDevice()
    quantised = QuantisedLayer(random_layer(SPECS["odd"], 3))
    layer = device.load(quantised, "layer")
    quantised.__dict__["combine_exponent"] = -60
    layer(torch.randn(2, 33))
    assert device.layers[0].overflows == 1


@pytest.mark.parametrize("form", FORMATS)
def test_searched_scales_are_never_worse(form: str) -> None:
    """In squared error of the weights; clearly better with few bits."""
    weight = torch.randn(64, 160, generator=torch.Generator().manual_seed(1))
    exponent = largest_scale_exponent(largest_magnitude("weight", weight), FORMATS[form])
    errors = [
        (torch.from_numpy(quantise(weight, FORMATS[form], exponent, scales=scales).dequantise()) - weight).square()
        for scales in ("largest", "mse")
    ]
    plain, searched = (error.view(64, 5, 32).sum(2) for error in errors)
    assert (searched <= plain).all()
    if form in ("int2", "int3", "int4"):
        assert searched.sum() < 0.9 * plain.sum()


def test_given_routes_have_no_agreement() -> None:
    from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec

    spec = LayerSpec(33, RouterSpec(5, 2, "given"), ExpertSpec(45))
    device = MeasuringDevice()
    device.load(QuantisedLayer(random_layer(spec)), "layer")(torch.randn(4, 33), routes_of(spec, 4))
    assert device.layers[0].agreed is None and device.layers[0].tokens == 4


def test_the_command_on_the_trained_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Searched scales beat plain rounding; int8 is close to float32."""
    assert cli.main(["quality", "--model", str(MODEL_DIR), "--text-file", str(HELD_OUT), "--tokens", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {tuple(line.split()[:2]): line.split() for line in lines[-4:-1]}
    plain, searched, int8 = (float(rows[key][2]) for key in (("int4", "largest"), ("int4", "mse"), ("int8", "largest")))
    assert plain + 0.2 < searched < int8 - 10
    exact = float(lines[-1].split()[-1])
    assert float(rows["int8", "largest"][-1]) == pytest.approx(exact, rel=0.01)
    assert sum("dB)" in line for line in lines) == 3 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "int7"], "weight format: expected int2 or"),
        (["--format", "int4:best"], "--format: expected int4:largest or mse or grid, got 'int4:best'"),
        (["--tokens", "1"], "--tokens: expected 2 or more, got 1"),
    ],
)
def test_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    text = tmp_path / "text"
    text.write_text("Once upon a time")
    assert cli.main(["quality", "--model", str(MODEL_DIR), "--text-file", str(text), *arguments]) == 2
    assert message in capsys.readouterr().err
