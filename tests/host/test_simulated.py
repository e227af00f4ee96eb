"""The driver on the real Verilog: bit-exact whatever the bus does, and usable again after every error."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from host.driver import Device, open_device
from host.handle import Handle, place
from host.transports.sim import SimTransport
from moe_hw.arch import Arch
from moe_hw.errors import DeviceError, DeviceTimeout
from moe_hw.formats import FORMATS
from moe_hw.image import aligned, expert_bytes, head_bytes, router_bytes, table_bytes
from moe_hw.layer import ExpertWeights, MoELayer, random_layer
from moe_hw.registers import COMMAND, COMPLETION, LAYER
from moe_hw.result import Result
from moe_hw.routes import GivenRoutes
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec
from moe_hw.twins.layer import golden
from sim.bench.runner import random_seed
from sim.board import SimulatedBoard
from tests.host.support import assert_equal, spec, tokens
from tests.moe_hw.layers import SPECS, layer_specs, routes_of


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with open_device("sim:ulx3s-85f") as opened:
        yield opened


@pytest.fixture
def board(device: Device) -> Iterator[SimulatedBoard]:
    """The board behind the device; what a test did to it is undone."""
    assert isinstance(device.transport, SimTransport)
    simulated = device.transport.simulated
    yield simulated
    simulated.set_dead(False)
    simulated.set_stall(0, 0.0)
    simulated.clear_faults()


LAYERS = (
    (random_layer(spec(), 1), "int4"),
    (random_layer(spec(hidden=64, inter=70, experts=9, top_k=3, normalise=False), 2), "int8"),
    (random_layer(spec(hidden=1, inter=1, experts=2, top_k=1), 3), "int4"),
    (random_layer(spec(experts=8, shared=SharedSpec(40, gated=True)), 4), "int4"),
    (random_layer(spec(shared=SharedSpec(5, gated=False)), 5), "int8"),
    (random_layer(SPECS["relu"], 6), "int2"),
    (random_layer(SPECS["squares"], 6), "int3"),
    (random_layer(SPECS["two biased layers"], 6), "int5"),
    (random_layer(SPECS["gpt-oss"], 6), "mxfp4"),
    (random_layer(SPECS["limits"], 6), "int6"),
    (random_layer(SPECS["deepseek-v3"], 6), "int4"),
    (random_layer(SPECS["sigmoids"], 6), "int8"),
    (random_layer(SPECS["corrected logits"], 6), "int4"),
    (random_layer(SPECS["filled groups"], 6), "int4"),
    (random_layer(SPECS["largest of a group"], 6), "int4"),
    (random_layer(SPECS["corrected softmax"], 6), "int3,0-2=int8,5=int2"),
    (random_layer(SPECS["roots"], 6), "int4,5=int6"),
    (random_layer(LayerSpec(40, RouterSpec(6, 3, "given"), ExpertSpec(50), SharedSpec(9, gated=False)), 7), "int8"),
)


def moved_bytes(handle: Handle, arch: Arch, result: Result) -> int:
    """Bytes of a single batch: each job streams its matrix and gathers its vectors in lines of 64 bytes."""
    shape, count, line = handle.spec, len(result.experts), 64
    slots, shared = handle.footprint.slots(), shape.shared is not None
    chosen = result.experts[result.experts >= 0]
    jobs = -(-count // slots)
    shared_bytes = expert_bytes(shape, shape.shared_blocks, handle.footprint.bits, arch.columns)
    weights = jobs * (router_bytes(shape, arch.columns) + shared_bytes)
    for choices, bits in zip(chosen.bincount(), handle.footprint.widths, strict=False):
        weights += -(-int(choices) // slots) * expert_bytes(shape, shape.inter_blocks, bits, arch.columns)
    choices = len(chosen)
    inputs = line * shape.input_blocks * (2 * count * (not shape.router.given) + choices + count * shared)
    hidden = line * (choices * shape.inter_blocks + count * shape.shared_blocks)
    word = arch.data_bits // 8
    records = COMMAND.size_bytes + head_bytes(shape) + COMPLETION.size_bytes
    results = handle.footprint.output_bytes(count) + handle.footprint.routing_bytes(count)
    routes = handle.footprint.routing_bytes(count) if shape.router.given else 0
    # The routing record ends with a whole bus word.
    return records + weights + inputs + 2 * hidden + aligned(results, word) + routes


@pytest.mark.parametrize(("layer", "weight_format"), LAYERS)
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_layers_equal_the_golden_model(
    device: Device, board: SimulatedBoard, layer: MoELayer, weight_format: str, stall: float
) -> None:
    board.set_stall(7, stall)
    handle = device.load(layer, weight_format)
    for count in (1, 2, 19):
        x, routes = tokens(layer, count), routes_of(layer.spec, count)
        result = handle(x, routes)
        assert_equal(result, golden(layer, x, weight_format, routes))
        if not layer.spec.router.given:  # some of whose choices are none
            assert result.report.counters["busy"] == result.report.compute_limit_cycles
        assert result.report.dram_bytes == moved_bytes(handle, device.arch, result)
    device.unload(handle)


def test_a_batch_in_which_no_expert_is_chosen(device: Device) -> None:
    layer = random_layer(LayerSpec(700, RouterSpec(2, 1, "given"), ExpertSpec(1)))
    handle = device.load(layer)
    for count in (1, 19):
        nothing = GivenRoutes(torch.full((count, 1), -1), torch.ones(count, 1))
        assert not handle(tokens(layer, count), nothing).output.any()
    handle.unload()


@pytest.mark.parametrize("seed", range(3))
def test_experts_that_are_read_ahead_and_not_chosen(device: Device, seed: int) -> None:
    """26 similar tokens choose one or two of six experts, of which all are read before the routes are known."""
    layer = random_layer(LayerSpec(70, RouterSpec(6, 1), ExpertSpec(50), SharedSpec(33, gated=True)), 3)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 70, generator=generator) + 0.2 * torch.randn(26, 70, generator=generator)
    handle = device.load(layer)
    result = handle(x)
    assert len(result.experts.unique()) <= 2
    assert_equal(result, golden(layer, x))
    handle.unload()


def test_random_layers_side_by_side(device: Device) -> None:
    """Layers of all shapes lie in one memory and are called in turn."""
    seed = random_seed()
    print(f"COCOTB_RANDOM_SEED={seed}")
    rng = random.Random(seed)
    widths = (1, 2, 3, 7, 31, 32, 33, 61, 64, 65, 97)
    loaded = []
    for number in range(6):
        experts = rng.choice((2, 3, 7, 13, 16, 31, 60))
        shared = rng.choice((None, SharedSpec(rng.choice(widths), gated=rng.random() < 0.5)))
        form = rng.choice(list(SPECS.values()))
        layer = random_layer(
            LayerSpec(
                rng.choice(widths),
                RouterSpec(
                    experts, rng.randint(1, min(8, experts)), normalise=rng.random() < 0.5, bias=form.router.bias
                ),
                dataclasses.replace(form.expert, intermediate=rng.choice(widths)),
                shared,
            ),
            seed % 1000 + number,
        )
        weight_format = rng.choice(list(FORMATS))
        loaded.append((layer, weight_format, device.load(layer, weight_format)))
    for layer, weight_format, handle in rng.sample(loaded, len(loaded)):
        x = tokens(layer, rng.choice((1, 2, 5, 17))) * 2.0 ** rng.randint(-90, 90)
        assert_equal(handle(x), golden(layer, x, weight_format))
    for _, _, handle in loaded:
        handle.unload()


ZERO = None
"""The order of a matrix or a token of zeros."""


def orders(low: int, high: int) -> st.SearchStrategy[int | None]:
    """Binary orders of magnitude: half of them about one, a few of them ``ZERO``."""
    return st.sampled_from(range(12)).flatmap(
        lambda case: st.just(ZERO) if case == 11 else st.integers(-3, 3) if case < 6 else st.integers(low, high)
    )


def scaled(values: torch.Tensor, order: int | None) -> torch.Tensor:
    return torch.zeros_like(values) if order is ZERO else values * 2.0**order


def scaled_layer(spec: LayerSpec, seed: int, matrix_orders: list[int | None], distinct: int) -> MoELayer:
    """A random layer whose matrices are of the given orders, and whose router repeats its first ``distinct`` rows.

    Orders are of the router, the shared expert's gate, each expert's three matrices and the shared expert's.
    """
    layer = random_layer(spec, seed)
    gate, shared = layer.shared_gate_weight(), layer.shared()

    def matrices(number: int, weights: ExpertWeights) -> ExpertWeights:
        first = 2 + 3 * number
        gate, up, down = matrix_orders[first : first + 3]
        parts = zip(weights, (gate, up, down, gate, up, down), strict=True)
        return ExpertWeights(*(None if part is None else scaled(part, order) for part, order in parts))

    router, bias, correction = layer.router_weight(), layer.router_bias(), layer.correction()
    repeated = torch.arange(spec.router.experts) % distinct
    return MoELayer(
        spec,
        router=None if router is None else scaled(router, matrix_orders[0])[repeated],
        router_bias=None if bias is None else scaled(bias, matrix_orders[0])[repeated],
        correction=None if correction is None else correction[repeated],
        expert=lambda index: matrices(index, layer.expert(index)),
        shared=(lambda: matrices(spec.router.experts, shared)) if shared else None,
        shared_gate=None if gate is None else scaled(gate, matrix_orders[1]),
    )


@settings(
    max_examples=40, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), spec=layer_specs(st.integers(1, 100), 16, 12), weight_format=st.sampled_from(list(FORMATS)))
def test_any_layer_equals_the_golden_model(
    device: Device, board: SimulatedBoard, data: st.DataObject, spec: LayerSpec, weight_format: str
) -> None:
    """Weights and tokens of any magnitude, zeros, ties between experts, and any stalls of the bus."""
    seed = data.draw(st.integers(0, 1000), "seed")
    experts = spec.router.experts
    matrices = 2 + 3 * (experts + 1)
    matrix_orders = data.draw(st.lists(orders(-40, 30), min_size=matrices, max_size=matrices), "orders of matrices")
    layer = scaled_layer(spec, seed, matrix_orders, data.draw(st.integers(1, experts), "distinct router rows"))

    token_orders = data.draw(st.lists(orders(-90, 60), min_size=1, max_size=20), "orders of tokens")
    spread = data.draw(st.integers(0, 40), "range of a token's orders")
    generator = torch.Generator().manual_seed(seed)
    shape = len(token_orders), spec.hidden
    x = torch.randn(shape, generator=generator)
    x *= 2.0 ** torch.randint(-spread, 1, shape, generator=generator)
    x = torch.stack([scaled(token, order) for token, order in zip(x, token_orders, strict=True)])

    board.set_stall(seed, data.draw(st.sampled_from([0.0, 0.3, 0.6]), "stall"))
    handle = device.load(layer, weight_format)
    try:
        routes = routes_of(spec, len(x), seed)
        assert_equal(handle(x, routes), golden(layer, x, weight_format, routes))
    finally:
        handle.unload()


@pytest.mark.parametrize("what", ["weights", "inputs", "hidden", "outputs", "routes", "experts", "correction"])
def test_bus_error_is_a_status_and_the_device_works_again(device: Device, board: SimulatedBoard, what: str) -> None:
    layers = {"routes": LAYERS[-1], "correction": (random_layer(SPECS["deepseek-v3"]), "int4")}
    layer, weight_format = layers.get(what, LAYERS[0])
    handle = device.load(layer, weight_format)
    x, routes = tokens(layer, 3), routes_of(layer.spec, 3)
    records = device.workspace + handle.footprint.hidden_bytes(handle.max_tokens)
    tables = handle.address + LAYER.size_bytes
    kind, start, reason = {
        "weights": ("read", handle.address + head_bytes(layer.spec), "weights were read"),
        "inputs": ("read", records, "inputs or hidden activations were read"),
        "hidden": ("write", device.workspace, "results were written"),
        "outputs": ("write", records + handle.footprint.input_bytes(3), "results were written"),
        "experts": ("read", tables, "the layer descriptor or a table"),
        "correction": ("read", tables + table_bytes(layer.spec), "the layer descriptor or a table"),
        "routes": ("read", records + place(0, handle.footprint, 3)[0]["routes"], "given routes were read"),
    }[what]
    board.add_fault(kind, start, 64)
    with pytest.raises(DeviceError, match=f"while {reason}"):
        handle(x, routes)
    board.clear_faults()
    assert_equal(handle(x, routes), golden(layer, x, weight_format, routes))
    device.unload(handle)


def test_dead_memory_is_a_timeout_and_the_device_works_again(device: Device, board: SimulatedBoard) -> None:
    layer, weight_format = LAYERS[0]
    handle = device.load(layer, weight_format)
    x = tokens(layer, 3)
    board.set_dead()
    with pytest.raises(DeviceTimeout, match="the device waits for: COMMAND_FETCH"):
        handle(x)
    board.set_dead(False)
    assert_equal(handle(x), golden(layer, x, weight_format))
    device.unload(handle)
