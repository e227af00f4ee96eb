"""The rules of ``docs/design.md`` by which a command is refused, for the tests of both sides."""

from __future__ import annotations

from collections.abc import Mapping

from moe_hw.arch import MAX_GROUPS, ROWS, Arch
from moe_hw.registers import COMMAND, LAYER_MAGIC, Status
from moe_hw.spec import SCORES
from moe_hw.tables import RELU


def refusal(arch: Arch, layer: Mapping[str, int], cut: Mapping[str, int]) -> Status:
    """The first reason against a batch, or ``OK``.

    Parameters:
        layer: words of the layer descriptor.
        cut: words of the command: ``tokens``, ``slots`` and ``chunk_blocks``.
    """
    shared = layer["shared_blocks"]
    given = layer["given_routes"]
    sizes = ("hidden_blocks", "input_blocks", "inter_blocks", "experts")
    shape_ok = all(layer[name] for name in sizes)
    shape_ok = shape_ok and (layer["shared_bits"] >= 2 if shared else not layer["shared_gate"])
    shape_ok = shape_ok and (not layer["shared_gate"] if given else layer["router_bits"] >= 2)
    shape_ok = shape_ok and (given or layer["scale"] >> 15 & 1)
    shape_ok = shape_ok and layer["activation"] <= RELU
    shape_ok = shape_ok and not (layer["square"] if layer["gated"] else layer.get("softcap"))
    shape_ok = shape_ok and (given or not layer.get("normalise") or layer.get("epsilon"))
    shape_ok = shape_ok and layer.get("score", 0) < len(SCORES) - 1 and layer.get("correction", 0) < 3
    shape_ok = shape_ok and (layer.get("score") or layer.get("correction") != 2)
    shape_ok = shape_ok and (layer.get("correction") or not (layer.get("group_sum") or layer.get("group_zero")))
    shape_ok = shape_ok and not (layer.get("elements") and shared and layer["shared_bits"] != 4)
    if size := layer.get("group_size"):
        groups, kept_groups = layer["groups"], layer["kept_groups"]
        shape_ok = shape_ok and not (layer["group_sum"] and size == 1)
        shape_ok = shape_ok and 1 <= kept_groups <= min(arch.max_top_k, groups) and groups <= MAX_GROUPS
        shape_ok = shape_ok and layer["experts"] == groups * size
        shape_ok = shape_ok and (layer["group_zero"] or layer["top_k"] <= kept_groups * size)
    router_groups = 0 if given else -(-(layer["experts"] + layer["shared_gate"]) // arch.columns)
    vector = max(2 * layer["input_blocks"], layer["inter_blocks"], shared)
    slots, chunk = cut["slots"], cut["chunk_blocks"]
    # Products are of the bits that the accelerator keeps.
    kept = {word.name: cut[word.name] & (1 << word.bits) - 1 for word in COMMAND.words if word.name in cut}
    row = -(-ROWS * kept["chunk_blocks"] // arch.columns) * arch.columns
    for status, ok in (
        (Status.BAD_LAYER, layer["magic"] == LAYER_MAGIC),
        (Status.BAD_TOKENS, 1 <= cut["tokens"] <= arch.max_tokens),
        (Status.BAD_SHAPE, shape_ok),
        (Status.TOO_MANY_EXPERTS, layer["experts"] <= arch.max_experts),
        (Status.BAD_TOP_K, 1 <= layer["top_k"] <= min(arch.max_top_k, layer["experts"])),
        (Status.VECTOR_BUFFER_FULL, 2 * kept["slots"] * vector <= arch.vector_blocks),
        (Status.COMBINE_BUFFER_FULL, kept["tokens"] * row <= arch.combine_elements),
        (Status.LOGIT_BUFFER_FULL, kept["slots"] * router_groups <= arch.logit_words),
        (Status.BAD_CUT, 1 <= slots <= arch.slots and 1 <= chunk <= layer["hidden_blocks"]),
        (Status.BAD_CUT, chunk == layer["hidden_blocks"] or chunk % arch.chunk_granule == 0),
    ):
        if not ok:
            return status
    return Status.OK
