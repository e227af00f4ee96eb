"""The whole accelerator over AXI: layers against the golden model, bit for bit, from a cold start and after resets."""

import random

import cocotb
import numpy as np
import pytest
import torch
from cocotb.triggers import ClockCycles, RisingEdge

from moe_hw.arch import Arch
from moe_hw.formats import quantise_tokens
from moe_hw.image import LayerImage, input_record, read_output, read_routing
from moe_hw.layer import random_layer
from moe_hw.limits import Footprint
from moe_hw.quantised import QuantisedLayer
from moe_hw.registers import COMMAND, COMMAND_MAGIC, COMPLETION, COUNTERS, DEVICE_MAGIC, LAYER, Status
from moe_hw.spec import ExpertSpec, GroupSpec, LayerSpec, RouterSpec, SharedSpec
from moe_hw.twins.layer import golden
from rtl_gen.accelerator import Accelerator
from sim.bench import streams
from sim.bench.axi import Csrs, memory
from sim.bench.runner import parameter, run_bench

RING, INPUT, HIDDEN, OUTPUT, ROUTING, COMPLETED, IMAGE = 0x0, 0x1000, 0x3000, 0x7000, 0x9000, 0x9800, 0x10000
MEMORY = 1 << 20


def sizes(columns: int, data_bits: int, lanes: int) -> Arch:
    """Small enough that a batch makes several jobs and chunks."""
    return Arch(columns=columns, data_bits=data_bits, lanes=lanes, burst_bytes=256, vector_blocks=64, expert_beats=128,
                max_tokens=16, slots=4, max_experts=16, max_top_k=4, logit_words=4, combine_elements=1024)


def layer_spec(hidden: int, inter: int, experts: int, top_k: int, normalise: bool = True,
               shared: SharedSpec | None = None) -> LayerSpec:
    return LayerSpec(hidden=hidden, router=RouterSpec(experts=experts, top_k=top_k, normalise=normalise),
                     expert=ExpertSpec(intermediate=inter), shared=shared)


SPECS = [
    layer_spec(32, 32, 2, 1),
    layer_spec(1, 1, 3, 3),
    layer_spec(70, 33, 5, 2, normalise=False),
    layer_spec(64, 40, 7, 3, shared=SharedSpec(intermediate=70, gated=True)),
    layer_spec(33, 64, 4, 4, normalise=False, shared=SharedSpec(intermediate=20, gated=False)),
    LayerSpec(
        40,
        RouterSpec(12, 3, "sigmoid", correction="score", groups=GroupSpec(4, 2), epsilon=1e-6),
        ExpertSpec(32),
        SharedSpec(33, gated=False),
    ),
    LayerSpec(33, RouterSpec(7, 2, "sigmoid", normalise=False, correction="logit"), ExpertSpec(32)),
    LayerSpec(31, RouterSpec(8, 3, correction="score", groups=GroupSpec(4, 2)), ExpertSpec(40)),
    LayerSpec(32, RouterSpec(6, 2, "sqrtsoftplus", correction="score"), ExpertSpec(31), SharedSpec(32, gated=True)),
]


class Bench:
    """An accelerator, its memory and its CSRs."""

    def __init__(self, dut, pattern: streams.Pattern):
        self.dut = dut
        self.arch = sizes(*(int(parameter(name)) for name in ("columns", "data_bits", "lanes")))
        self.ram = memory(dut, MEMORY, pattern)
        self.csrs = Csrs(dut, pattern=pattern)
        self.head = 0

    async def start(self) -> None:
        await streams.start(self.dut)
        await self.configure()

    async def configure(self) -> None:
        self.head = 0
        await ClockCycles(self.dut.clk, 2)
        await self.csrs.write("ring_base", RING // 64)
        await self.csrs.write("ring_mask", 3)

    def load(self, layer: QuantisedLayer) -> None:
        for _, offset, data in LayerImage(layer, self.arch).segments():
            self.ram.write(IMAGE + offset, data.tobytes())

    async def submit(self, layer: QuantisedLayer, x: torch.Tensor, **changes: int) -> None:
        self.ram.write(INPUT, input_record(quantise_tokens(x)).tobytes())
        cut = Footprint(layer.spec, self.arch, layer.format.bits).cut(len(x))
        command = {"magic": COMMAND_MAGIC, "layer": IMAGE // 64, "input": INPUT // 64, "hidden": HIDDEN // 64,
                   "output": OUTPUT // 64, "routing": ROUTING // 64, "completion": COMPLETED // 64, **cut, **changes}
        self.ram.write(RING + self.head % 4 * 64, COMMAND.pack(command).tobytes())
        self.head += 1
        await self.csrs.write("tail", self.head)

    async def finish(self) -> Status:
        while int(self.dut.busy.value):
            await ClockCycles(self.dut.clk, 10)
        assert await self.csrs.read("head") == self.head
        return Status(await self.csrs.read("status"))

    def completion(self) -> dict[str, int]:
        return COMPLETION.unpack(np.frombuffer(self.ram.read(COMPLETED, COMPLETION.size_bytes), np.uint32))

    async def check(self, layer: QuantisedLayer, x: torch.Tensor) -> None:
        await self.submit(layer, x)
        assert await self.finish() == Status.OK
        spec = layer.spec
        want = golden(layer, x)
        output = np.frombuffer(self.ram.read(OUTPUT, len(x) * 128 * spec.hidden_blocks), np.uint8)
        choices = spec.router.top_k + (spec.shared is not None)
        routing = np.frombuffer(self.ram.read(ROUTING, len(x) * 8 * choices), np.uint8)
        experts, weights = read_routing(routing, len(x), spec)
        assert torch.equal(experts, want.experts)
        assert torch.equal(weights, want.weights)
        assert torch.equal(read_output(output, len(x), spec), want.output)
        record = self.completion()
        assert record["status"] == Status.OK and record["sequence"] == self.head - 1
        parts = ("setup", "busy", "wait_weights", "wait_vectors", "wait_results", "wait_jobs", "output")
        assert record["cycles"] == sum(record[name] for name in parts)
        assert {word.name for word in COUNTERS} <= set(record)
        assert record["experts_used"] == len(want.experts.unique()) + (spec.shared is not None)


def random_tokens(count: int, hidden: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    x = torch.randn(count, hidden, generator=generator)
    x[random.randrange(count)] *= 2.0 ** random.randint(-30, 30)
    return x


@cocotb.test(timeout_time=200, timeout_unit="ms")
@cocotb.parametrize(pattern=list(streams.PATTERNS), weight_format=["int4", "int8", "int4,0=int8,1=int3"])
async def layers(dut, pattern, weight_format):
    """One bitstream, layer after layer, batches of several jobs and chunks.

    All layers once, and then some of them, for this memory in Python is slow; ``sim/harness.cpp`` sees many more.
    """
    bench = Bench(dut, streams.PATTERNS[pattern])
    await bench.start()
    assert await bench.csrs.read("magic") == DEVICE_MAGIC
    low, high = await bench.csrs.read("config_hash_low"), await bench.csrs.read("config_hash_high")
    assert high << 32 | low == bench.arch.hash
    every = pattern == "always" and weight_format == "int4"
    for spec in SPECS if every else random.sample(SPECS, 2 if pattern == "always" else 1):
        layer = QuantisedLayer(random_layer(spec, seed=random.getrandbits(32)), weight_format)
        bench.load(layer)
        await bench.check(layer, random_tokens(random.choice((3, 7, 11, 16)), spec.hidden))
        await bench.check(layer, torch.zeros(1, spec.hidden))


@cocotb.test(timeout_time=50, timeout_unit="ms")
async def malformed_descriptors(dut):
    """Each is answered with its own status, and the next command works."""
    bench = Bench(dut, streams.always)
    await bench.start()
    layer = QuantisedLayer(random_layer(SPECS[3], seed=1))
    bench.load(layer)
    image = LayerImage(layer, bench.arch)
    x = random_tokens(2, layer.spec.hidden)
    for status, words, command in (
        (Status.BAD_LAYER, {"magic": 0}, {}),
        (Status.BAD_SHAPE, {"hidden_blocks": 0}, {}),
        (Status.BAD_SHAPE, {"shared_blocks": 0}, {}),
        (Status.BAD_SHAPE, {"router_bits": 0}, {}),
        (Status.TOO_MANY_EXPERTS, {"experts": 17}, {}),
        (Status.BAD_TOP_K, {"top_k": 0}, {}),
        (Status.BAD_TOP_K, {"top_k": 5}, {}),
        (Status.BAD_TOP_K, {"experts": 2}, {}),
        (Status.VECTOR_BUFFER_FULL, {"inter_blocks": 200}, {}),
        (Status.COMBINE_BUFFER_FULL, {"hidden_blocks": 4}, {"tokens": 16, "chunk_blocks": 4}),
        (Status.LOGIT_BUFFER_FULL, {"experts": 16}, {}),
        (Status.BAD_CUT, {}, {"slots": 0}),
        (Status.BAD_CUT, {}, {"chunk_blocks": 0}),
        (Status.BAD_CUT, {}, {"chunk_blocks": 3}),
        (Status.BAD_TOKENS, {}, {"tokens": 0}),
        (Status.BAD_TOKENS, {}, {"tokens": 17}),
        (Status.BAD_TOKENS, {}, {"tokens": 0xFFFF}),
        (Status.BAD_COMMAND, {}, {"magic": 1}),
    ):
        bench.ram.write(IMAGE, LAYER.pack(image.descriptor() | words).tobytes())
        await bench.submit(layer, x, **command)
        assert await bench.finish() == status, (words, command)
        if status != Status.BAD_COMMAND:  # its addresses mean nothing
            assert bench.completion()["status"] == status
    bench.ram.write(IMAGE, LAYER.pack(image.descriptor()).tobytes())
    await bench.check(layer, x)


@cocotb.test(timeout_time=50, timeout_unit="ms")
async def reset_in_flight(dut):
    """Wherever a reset strikes in a batch of several jobs and chunks, the next one is right."""
    bench = Bench(dut, streams.always)
    await bench.start()
    layer = QuantisedLayer(random_layer(SPECS[2], seed=2))
    bench.load(layer)
    x = random_tokens(12, layer.spec.hidden)
    await bench.check(layer, x)
    whole = bench.completion()["cycles"]
    for _ in range(8):
        await bench.submit(layer, x)
        await ClockCycles(dut.clk, random.randrange(1, whole))
        await streams.reset(dut)
        await bench.configure()
        await bench.check(layer, random_tokens(1, layer.spec.hidden))


@cocotb.test(timeout_time=50, timeout_unit="ms")
async def several_commands_in_the_ring(dut):
    """Commands queue up and complete in order, also past the end of the ring."""
    bench = Bench(dut, streams.always)
    await bench.start()
    layer = QuantisedLayer(random_layer(SPECS[0], seed=3))
    bench.load(layer)
    x = random_tokens(1, 32)
    for _ in range(2):
        for _ in range(3):
            await bench.submit(layer, x)
            await RisingEdge(dut.clk)
        assert await bench.finish() == Status.OK
        assert bench.completion()["sequence"] == bench.head - 1
    await bench.check(layer, x)


@pytest.mark.parametrize(("columns", "data_bits", "lanes"), [(4, 32, 1), (8, 64, 2), (16, 512, 4)])
def test_accelerator(columns: int, data_bits: int, lanes: int) -> None:
    accelerator = Accelerator(sizes(columns, data_bits, lanes))
    run_bench(accelerator, __name__, columns=columns, data_bits=data_bits, lanes=lanes)
