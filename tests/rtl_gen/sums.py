"""Batches of weighted results, and float outputs, that the tests of the combine buffer and of its output share."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from moe_hw.arch import ACC_BITS, ROWS, Arch
from moe_hw.twins.combine import add, contribution
from rtl_gen.types import Kind

MOST_NEGATIVE = -(1 << ACC_BITS - 1)
ONE = {"mantissa": 1 << 15, "exponent": -15, "negative": 0}
SIZES = {
    "narrow": Arch(columns=4, lanes=1, max_tokens=1, slots=1, combine_elements=256),
    "two lanes": Arch(columns=8, data_bits=64, lanes=2, max_tokens=16, slots=4, combine_elements=1024),
    "wide": Arch(columns=64, data_bits=128, lanes=4, max_tokens=8, slots=8, combine_elements=2048),
}


def random_weight() -> dict[str, int]:
    if random.random() < 0.1:
        return {"mantissa": 0, "exponent": random.choice([-2048, -15]), "negative": 0}
    mantissa = random.choice([1 << 15, (1 << 16) - 1, random.randrange(1 << 15, 1 << 16)])
    return {"mantissa": mantissa, "exponent": random.choice([-15, -16, -20, -60]), "negative": random.randrange(2)}


def random_acc() -> int:
    return random.choice(
        [
            0,
            MOST_NEGATIVE,
            -MOST_NEGATIVE - 1,
            random.choice([-1, 1]) << random.randrange(ACC_BITS - 1),
            random.randint(MOST_NEGATIVE, -MOST_NEGATIVE - 1) >> random.randrange(ACC_BITS),
            random.randint(MOST_NEGATIVE, -MOST_NEGATIVE - 1) >> random.randrange(8),
        ]
    )


def row_of(arch: Arch, chunk_blocks: int) -> int:
    """Words of a token in the combine buffer."""
    return -(-ROWS * chunk_blocks // arch.columns) * arch.columns


def shapes(arch: Arch) -> list[tuple[int, int]]:
    """Tokens and blocks of a chunk; the largest fills the memory."""
    largest = arch.combine_elements // arch.max_tokens // max(ROWS, arch.columns) * max(ROWS, arch.columns) // ROWS
    return [(1, 1), (min(3, arch.max_tokens), 2), (arch.max_tokens, largest)]


class Batch:
    """A chunk of a batch: the results to send, and the words they make.

    Parameters:
        tokens, chunk_blocks: sizes.
        headroom: range of ``K - A_down``; the addends of the largest accumulators saturate below about -15.
    """

    def __init__(self, arch: Arch, tokens: int, chunk_blocks: int, headroom: tuple[int, int] = (5, 60)):
        self.arch = arch
        self.tokens = tokens
        self.headroom = headroom
        self.layer = {
            "tokens": tokens,
            "chunk_blocks": chunk_blocks,
            "combine_exponent": random.randint(-80, 40),
            "gated": random.randrange(2),
            "down_exponent": random.randint(-100, 100),
            "shared_down_exponent": random.randint(-100, 100),
        }
        self.token_exponents = [random.randint(-30, 30) for _ in range(tokens)]
        self.words = np.zeros((tokens, row_of(arch, chunk_blocks)), np.int64)
        self.overflow = False
        self.results: list[dict[str, Any]] = []
        self.jobs = 0

    def add_job(
        self,
        tokens: list[int] | None = None,
        groups: list[int] | None = None,
        draw_acc: Callable[[], int] = random_acc,
        draw_weight: Callable[[], dict[str, int]] = random_weight,
    ) -> None:
        """A job for ``tokens`` in the order of their slots, by default as many as there are slots, and all groups."""
        if tokens is None:
            tokens = random.sample(range(self.tokens), min(self.tokens, self.arch.slots))
        groups = list(range(self.words.shape[1] // self.arch.columns)) if groups is None else groups
        weights = [draw_weight() for _ in tokens]
        shared = random.randrange(2)
        for group in groups:
            for slot, token in enumerate(tokens):
                acc = [draw_acc() for _ in range(self.arch.columns)]
                self.results.append(self._result(shared, slot, token, group, acc, weights[slot]))
        self.results[-1]["last"] = 1
        self.jobs += 1

    def _result(
        self, shared: int, slot: int, token: int, group: int, acc: list[int], weight: dict[str, int]
    ) -> dict[str, Any]:
        k = (1 + self.layer["gated"]) * self.token_exponents[token] + self.layer["combine_exponent"]
        a_down = k - random.randint(*self.headroom)
        mantissa = -weight["mantissa"] if weight["negative"] else weight["mantissa"]
        addends, beyond = contribution(acc, a_down, mantissa, weight["exponent"], k)
        place = np.s_[token, group * self.arch.columns : (group + 1) * self.arch.columns]
        self.words[place], saturated = add(self.words[place], addends)
        self.overflow |= bool((beyond | saturated).any())
        return {
            "kind": Kind.DOWN,
            "shared": shared,
            "last": 0,
            "slot": slot,
            "group": group,
            "of": {"token": token, "unused": random.randrange(2), "weight": weight},
            "base_exponent": a_down - self.layer["shared_down_exponent" if shared else "down_exponent"],
            "token_exponent": self.token_exponents[token],
            "acc": acc,
        }
