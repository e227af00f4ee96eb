"""Given routes: what is refused, and how weights are rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_hw.errors import InputError
from moe_hw.routes import GivenRoutes
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec

SPEC = LayerSpec(4, RouterSpec(3, 2, score="given"), ExpertSpec(4))
SHARED = LayerSpec(4, RouterSpec(3, 2, score="given"), ExpertSpec(4), SharedSpec(4, gated=False))
EXPERTS = torch.tensor([[0, 2], [1, -1]])
WEIGHTS = torch.tensor([[0.5, 0.25], [1.0, 9.0]])


def test_the_weight_of_no_expert_does_not_count() -> None:
    experts, weights = GivenRoutes(EXPERTS, WEIGHTS).rounded(SPEC, 2)
    assert experts.tolist() == EXPERTS.tolist() and weights.tolist() == [[0.5, 0.25], [1.0, 0.0]]


def test_the_shared_experts_weight_is_the_last() -> None:
    experts, weights = GivenRoutes(EXPERTS, WEIGHTS).rounded(SHARED, 2)
    assert experts[:, 2].tolist() == [3, 3] and weights[:, 2].tolist() == [1, 1]
    weights = GivenRoutes(EXPERTS, WEIGHTS, torch.tensor([0.5, 0.0])).rounded(SHARED, 2)[1]
    assert weights[:, 2].tolist() == [0.5, 0]


@given(st.floats(-32, 32, width=32))
def test_weights_have_16_bits(value: float) -> None:
    rounded = GivenRoutes(torch.tensor([[0, 1]]), torch.tensor([[value, value]])).rounded(SPEC, 1)[1]
    fraction, _ = np.frexp(rounded)
    assert rounded.dtype == np.float32 and (fraction * 2**16 == np.rint(fraction * 2**16)).all()
    assert float(rounded[0, 0]) == pytest.approx(value, rel=2.0**-16, abs=2.0**-126)


@pytest.mark.parametrize(
    ("experts", "weights", "shared", "message"),
    [
        (EXPERTS[:1], WEIGHTS, None, r"expected integers and floats of shape \[2, 2\], got torch.int64 \[1, 2\]"),
        (EXPERTS.double(), WEIGHTS, None, "expected integers and floats"),
        (EXPERTS + 1, WEIGHTS, None, "routes of token 0: expected experts -1 to 2, got 3"),
        (EXPERTS - 2, WEIGHTS, None, "routes of token 0: expected experts -1 to 2, got -2"),
        (torch.tensor([[0, 1], [2, 2]]), WEIGHTS, None, "routes of token 1: expected each expert once, got 2 twice"),
        (EXPERTS, -100 * WEIGHTS, None, "token 0: expected weights of magnitudes that sum to at most 64, got 75"),
        (EXPERTS, WEIGHTS * float("nan"), None, "expected weights of magnitudes that sum to at most 64, got nan"),
        (EXPERTS, WEIGHTS, torch.ones(2), "expected no weights of a shared expert"),
    ],
)
def test_what_is_refused(experts: Any, weights: Any, shared: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GivenRoutes(experts, weights, shared).rounded(SPEC, 2)


def test_weights_of_the_shared_expert_for_other_tokens() -> None:
    with pytest.raises(InputError, match=r"weights of the shared expert \[2\], got \[3\]"):
        GivenRoutes(EXPERTS, WEIGHTS, torch.ones(3)).rounded(SHARED, 2)
