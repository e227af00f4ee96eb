"""Random descriptors, most of them at a limit, against the rules in Python."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge

from moe_hw.arch import ROWS, Arch
from moe_hw.registers import LAYER_MAGIC, ONE, Status
from rtl_gen.layer_check import LayerCheck
from rtl_gen.types import layer_layout
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import pack, start
from tests.moe_hw.rules import refusal

ARCHES = {
    "small": Arch(columns=4, vector_blocks=64, max_tokens=1, slots=1, max_experts=8, max_top_k=1, logit_words=2,
                  combine_elements=64),
    "default": Arch(),
    "wide": Arch(columns=128, vector_blocks=1 << 14, max_tokens=512, slots=128, max_experts=512,
                 combine_elements=1 << 18),
}  # fmt: skip


@pytest.mark.parametrize("arch", list(ARCHES))
def test_layer_check(arch: str) -> None:
    run_bench(LayerCheck(ARCHES[arch]), __name__, arch=arch)


def near(*limits: int) -> int:
    """A number at one of the limits, next to it, or below; seldom 0."""
    limit = random.choice(limits)
    least = int(random.random() > 0.03)
    return max(least, random.choice([limit, limit, limit + 1, limit - 1, random.randint(0, limit)]))


def random_groups(experts: int, arch: Arch) -> dict[str, int]:
    """Half of all layers have groups, most of them such as there can be."""
    if random.randrange(2):
        size = int(random.random() < 0.1)
        return {"group_size": size, "groups": 0, "group_sum": 0, "kept_groups": random.randrange(32)}
    groups = random.choice([count for count in range(1, 40) if experts % count == 0] * 9 + [random.randrange(1, 64)])
    return {
        "groups": groups,
        "group_size": experts // groups,
        "kept_groups": min(31, near(arch.max_top_k, groups)),
        "group_sum": random.randrange(2),
        "group_zero": random.randrange(2),
    }


def random_case(arch: Arch) -> tuple[int, dict[str, int], dict[str, int]]:
    """Magic word, cut and layer."""
    tokens = near(arch.max_tokens, 1)
    slots = near(arch.slots, arch.slots, 1)
    longest = arch.vector_blocks // 2 // max(slots, 1)
    hidden = min(1023, near(1, longest // 2))
    layer = {
        "tokens": tokens,
        "slots": slots,
        "chunk_blocks": min(1023, near(hidden, 1, arch.combine_elements // ROWS // max(tokens, 1))),
        "hidden_blocks": hidden,
        "input_blocks": min(1023, random.choice([hidden, hidden + 1] * 9 + [0])),
        "inter_blocks": min(1023, near(1, longest)),
        "shared_blocks": random.choice([0, min(1023, near(longest))]),
        "experts": min(1023, near(arch.max_experts, arch.columns * (arch.logit_words // max(slots, 1)))),
        "top_k": min(31, near(arch.max_top_k, 1)),
        "shared_gate": random.choice([0, 0, 1]),
        "shared_bits": random.choice([0, 1] + [2, 4, 4, 5, 8] * 10),
        "router_bits": random.choice([0, 1] + [16] * 20),
        "given_routes": random.choice([0, 0, 1]),
        "activation": random.choice([*range(5)] * 4 + [5, 6, 7]),
        "gated": random.randrange(2),
        "square": random.choice([0, 0, 0, 1]),
        "softcap": random.choice([0, 0, 0, 1]),
        "normalise": random.randrange(2),
        "score": random.choice([0, 1, 2] * 10 + [3]),
        "correction": random.choice([0, 1, 2] * 10 + [3]),
        "elements": random.choice([0, 0, 0, 1]),
        "scale": random.choice([ONE] * 20 + [0]),
        "epsilon": random.choice([0, 1, 1, 1]),
    }
    layer |= random_groups(layer["experts"], arch)
    # All 32 bits of these words count.
    cut = {name: layer[name] + (random.randrange(40) == 0) * (1 << 16) for name in ("tokens", "slots", "chunk_blocks")}
    return random.choice([LAYER_MAGIC] * 9 + [0]), cut, layer


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def random_descriptors(dut: Any) -> None:
    await start(dut)
    arch = ARCHES[parameter("arch")]
    seen = set()
    for _ in range(4000):
        magic, cut, layer = random_case(arch)
        dut.magic.value, dut.layer.value = magic, pack(layer_layout(), layer)
        for name, value in cut.items():
            getattr(dut, name).value = value
        await ClockCycles(dut.clk, 3)
        await ReadOnly()
        status = Status(int(dut.status.value))
        assert status == refusal(arch, {**layer, "magic": magic}, cut), f"{cut}, {layer}"
        seen.add(status)
        await RisingEdge(dut.clk)
    missing = {status for status in Status if status < Status.COMMAND_READ_ERROR} - {Status.BAD_COMMAND} - seen
    assert not missing, f"no case of {missing}"
