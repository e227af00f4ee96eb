"""Random layers and routes, and the segments and works that a batch of them is made of."""

from __future__ import annotations

import random
from typing import Any

from moe_hw.arch import ROUTER_SLOTS, ROWS, Arch
from rtl_gen.types import Kind, address_bits
from rtl_gen.walk import AHEAD_SHIFT, Step

ROUTER = -1
"""Stands for the router among expert numbers."""


def reads_ahead(layer: dict[str, int]) -> bool:
    """Whether the walk may read experts before it knows which are chosen."""
    several = layer["tokens"] * layer["top_k"] >= layer["experts"] << AHEAD_SHIFT
    return several and layer["tokens"] <= layer["slots"] and not layer["given_routes"]


def random_layer(arch: Arch, **given: int) -> dict[str, int]:
    """A layer and a batch's cut of it; at most 4 chunks. Nothing is read ahead of the routes but with given slots."""
    experts = given.get("experts", random.choice([2, arch.max_experts, random.randint(2, arch.max_experts)]))
    shared = random.randrange(3)
    hidden = given.get("hidden_blocks", random.choice([1, 2, 1023, random.randint(1, 1023)]))
    layer = {
        "tokens": random.choice([1, min(2, arch.max_tokens), arch.max_tokens, random.randint(1, arch.max_tokens)]),
        "slots": random.choice([arch.slots, random.randint(max(1, arch.slots // 3), arch.slots)]),
        "chunk_blocks": -(-hidden // random.randint(1, min(4, hidden))),
        "chunk_stride": random.getrandbits(14),
        "shared_chunk_stride": random.getrandbits(14),
        "hidden_blocks": hidden,
        "input_blocks": min(1023, hidden + random.randrange(2)),
        "inter_blocks": random.randint(1, 1023),
        "shared_blocks": random.randint(1, 1023) if shared else 0,
        "experts": experts,
        "top_k": random.randint(1, min(arch.max_top_k, experts)),
        "shared_gate": int(shared == 2),
        "given_routes": 0,
        "gated": random.randrange(2),
        "shared_bits": random.randint(2, 8),
        "router_bits": 16,
        "router_address": random.getrandbits(20),
        "expert_down": random.getrandbits(14),
        "shared_address": random.getrandbits(24),
        "shared_down": random.getrandbits(14),
        **given,
    }
    if "slots" not in given and reads_ahead(layer):
        layer["slots"] = layer["tokens"] - 1
    return layer


def random_routes(layer: dict[str, int]) -> list[dict[str, Any]]:
    """Routes as the router emits them; some batches use few of the experts. Given ones may choose none."""
    experts, top_k = layer["experts"], layer["top_k"]
    candidates = random.sample(range(experts), random.choice([experts, random.randint(top_k, experts)]))
    routes = []
    for token in range(layer["tokens"]):
        chosen = random.sample(candidates, top_k) + [experts] * (layer["shared_blocks"] != 0)
        for expert in chosen:
            weight = {
                "mantissa": random.randint(1 << 15, (1 << 16) - 1), "exponent": random.randint(-170, -15),
                "negative": random.randrange(2),
            }  # fmt: skip
            none = int(layer["given_routes"] and expert != experts and random.random() < 0.3)
            routes.append({"token": token, "expert": expert, "none": none, "weight": weight, "last": 0})
    routes[-1]["last"] = 1
    return routes


def queues_of(layer: dict[str, int], routes: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Places of the routes of each expert that has any; of all tokens for the router, which has no places."""
    queues: dict[int, list[int]] = {} if layer["given_routes"] else {ROUTER: [0] * layer["tokens"]}
    for place, route in enumerate(routes):
        if not route["none"]:
            queues.setdefault(route["expert"], []).append(place)
    return queues


def even_parts(count: int, slots: int) -> list[int]:
    """Sizes of the fewest parts of at most ``slots``, the larger ones first."""
    parts = -(-count // slots)
    return [count // parts + (number < count % parts) for number in range(parts)]


def passes_of(layer: dict[str, int], used: set[int]) -> list[tuple[Kind, int, list[int]]]:
    """Kind, chunk and experts of each pass: the shared expert first, then those that a token chose, in order."""
    order = sorted(used - {ROUTER}, key=lambda expert: -1 if expert == layer["experts"] else expert)
    chunks = -(-layer["hidden_blocks"] // layer["chunk_blocks"])
    router = [] if layer["given_routes"] else [(Kind.ROUTER, 0, [ROUTER])]
    return [*router, (Kind.UP, 0, order), *((Kind.DOWN, chunk, order) for chunk in range(chunks))]


def table_entry(layer: dict[str, int], expert: int) -> dict[str, int]:
    """What the expert table says of a routed expert: any address and width, always the same of one layer."""
    drawn = random.Random(layer["expert_down"] << 10 | expert)
    return {"address": drawn.getrandbits(24), "bits": drawn.randint(2, 8)}


def segment_of(arch: Arch, layer: dict[str, int], kind: Kind, chunk: int, expert: int) -> dict[str, int]:
    """The matrix, or the chunk of one, that a job multiplies."""
    if expert == layer["experts"]:
        address, down, stride = layer["shared_address"], layer["shared_down"], layer["shared_chunk_stride"]
        inter, bits = layer["shared_blocks"], layer["shared_bits"]
    else:
        address, bits = table_entry(layer, expert).values()
        inter, down, stride = layer["inter_blocks"], layer["expert_down"], layer["chunk_stride"]
    rows, blocks = (1 + layer["gated"]) * ROWS * inter, layer["input_blocks"]
    if kind == Kind.ROUTER:
        address, rows, bits = layer["router_address"], layer["experts"] + layer["shared_gate"], layer["router_bits"]
    elif kind == Kind.DOWN:
        address += (down + chunk * stride) * (1 + 4 * bits)
        rows = ROWS * min(layer["chunk_blocks"], layer["hidden_blocks"] - chunk * layer["chunk_blocks"])
        blocks = inter
    address %= 1 << address_bits(arch)
    return {"address": address, "groups": -(-rows // arch.columns), "blocks": blocks, "bits": bits}


def expected_batch(
    arch: Arch, layer: dict[str, int], counts: dict[int, int]
) -> tuple[list[dict[str, int]], list[dict[str, Any]]]:
    """Segments and works of a batch, in order.

    Parameters:
        counts: vectors of each expert that has any, the shared one and ``ROUTER`` among them.

    Returns:
        Works have ``step``; jobs also their fields in ``work_layout`` but ``head``, and ``expert``.
    """
    segments, works = [], []
    for kind, chunk, experts in passes_of(layer, set(counts)):
        for expert in experts:
            most = min(layer["slots"], ROUTER_SLOTS) if kind == Kind.ROUTER else layer["slots"]
            for number, slots in enumerate(even_parts(counts[expert], most)):
                segments.append(segment_of(arch, layer, kind, chunk, expert))
                works.append({
                    "step": Step.JOB.value, "kind": kind.value, "shared": int(expert == layer["experts"]),
                    "fresh": int(number == 0), "slots": slots, "groups": segments[-1]["groups"],
                    "bits": segments[-1]["bits"], "expert": expert,
                })  # fmt: skip
        if kind == Kind.UP:
            works.append({"step": Step.BARRIER.value})
        elif kind == Kind.DOWN:
            works.append({"step": Step.STORE.value})
    return segments, works
