"""A small accelerator after synthesis, from its bus to its results: bit for bit the golden model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from boards import load_board
from host.driver import Device
from host.transports.sim import SimTransport
from moe_hw.arch import Arch
from moe_hw.layer import MoELayer, random_layer
from moe_hw.spec import SharedSpec
from moe_hw.twins.layer import golden
from rtl_gen.accelerator import Accelerator
from rtl_gen.emit import to_verilog
from sim.board import SimulatedBoard
from sim.build import build
from sim.netlist import to_netlist
from tests.host.support import assert_equal, spec, tokens
from tests.moe_hw.layers import SPECS

SMALL = Arch(
    columns=4, expert_beats=512, vector_blocks=512, max_tokens=8, slots=4, max_experts=16, max_top_k=4, logit_words=64,
    combine_elements=2048,
)  # fmt: skip

LAYERS = (
    (random_layer(spec(experts=8, shared=SharedSpec(40, gated=True)), 4), "int8"),
    (random_layer(SPECS["gpt-oss"], 6), "mxfp4"),
    (random_layer(SPECS["deepseek-v3"], 6), "int4"),
)


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    board = load_board("ulx3s-85f")
    netlist = to_netlist(to_verilog(Accelerator(SMALL), "moe_hw"), "moe_hw")
    with Device(SimTransport(SimulatedBoard(build(netlist, SMALL), SMALL, board), SMALL, board)) as opened:
        yield opened


@pytest.mark.parametrize(("layer", "weight_format"), LAYERS)
def test_layers_equal_the_golden_model(device: Device, layer: MoELayer, weight_format: str) -> None:
    handle = device.load(layer, weight_format)
    for count in (1, 11):
        x = tokens(layer, count)
        assert_equal(handle(x), golden(layer, x, weight_format))
    handle.unload()
