"""The rules of ``docs/design.md`` by which a command is refused, for the tests of both sides."""

from __future__ import annotations

from collections.abc import Mapping

from moe_hw.arch import ROWS, Arch
from moe_hw.registers import LAYER_MAGIC, Status


def refusal(arch: Arch, layer: Mapping[str, int], cut: Mapping[str, int]) -> Status:
    """The first reason against a batch, or ``OK``.

    Parameters:
        layer: words of the layer descriptor.
        cut: words of the command: ``tokens``, ``slots`` and ``chunk_blocks``.
    """
    shared = layer["shared_blocks"]
    sizes = ("hidden_blocks", "inter_blocks", "experts", "passes", "router_passes")
    shape_ok = all(layer[name] for name in sizes) and (layer["shared_passes"] if shared else not layer["shared_gate"])
    router_groups = -(-(layer["experts"] + layer["shared_gate"]) // arch.columns)
    vector = max(2 * layer["hidden_blocks"], layer["inter_blocks"], shared)
    row = -(-ROWS * cut["chunk_blocks"] // arch.columns) * arch.columns
    slots, chunk = cut["slots"], cut["chunk_blocks"]
    for status, ok in (
        (Status.BAD_LAYER, layer["magic"] == LAYER_MAGIC),
        (Status.BAD_TOKENS, 1 <= cut["tokens"] <= arch.max_tokens),
        (Status.BAD_SHAPE, shape_ok),
        (Status.TOO_MANY_EXPERTS, layer["experts"] <= arch.max_experts),
        (Status.BAD_TOP_K, 1 <= layer["top_k"] <= min(arch.max_top_k, layer["experts"])),
        (Status.VECTOR_BUFFER_FULL, 2 * slots * vector <= arch.vector_blocks),
        (Status.COMBINE_BUFFER_FULL, cut["tokens"] * row <= arch.combine_elements),
        (Status.LOGIT_BUFFER_FULL, slots * router_groups <= arch.logit_words),
        (Status.BAD_CUT, 1 <= slots <= arch.slots and 1 <= chunk <= layer["hidden_blocks"]),
    ):
        if not ok:
            return status
    return Status.OK
