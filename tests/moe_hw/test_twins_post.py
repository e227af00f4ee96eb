"""Activation functions and re-quantising against real arithmetic, within the errors that their tables allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe_hw.formats import EXP_ZERO
from moe_hw.quantised import cap_words, limit_words
from moe_hw.reference import hidden_activations
from moe_hw.registers import NO_CAP
from moe_hw.spec import ACTIVATIONS, ExpertSpec
from moe_hw.tables import GATES, RELU
from moe_hw.twins.arith import EXP_MIN, norm16
from moe_hw.twins.post import Form, activate, gate_factor, requantise, softcapped

accumulators = st.integers(-(1 << 47), (1 << 47) - 1)
exponents = st.integers(-600, 400)


@given(name=st.sampled_from(list(GATES)[:RELU]), value=st.integers(0, (1 << 47) - 1), exponent=st.integers(-80, 20))
def test_gate_factor(name: str, value: int, exponent: int) -> None:
    """Within half a step of the table and h^2 / 8 of the largest second derivative, 0.28."""
    s = int(gate_factor(list(GATES).index(name), *norm16(value, exponent)))
    assert 1 << 15 <= s <= 1 << 16
    assert s / 2**16 == pytest.approx(GATES[name](min(value * 2.0**exponent, 500)), abs=6e-5)


@pytest.mark.parametrize(("mantissa", "exponent", "s"), [(0, EXP_MIN, 1 << 15), (1 << 15, 100, 1 << 16)])
def test_gate_factor_at_its_ends(mantissa: int, exponent: int, s: int) -> None:
    assert gate_factor(0, mantissa, exponent) == s
    assert gate_factor(RELU, mantissa, exponent) == 1 << 16


SPECS = [
    *(ExpertSpec(1, name, gated=gated) for name in GATES for gated in (True, False)),
    ExpertSpec(1, "relu2", gated=False),
    ExpertSpec(1, "silu", limit=0.7),
    ExpertSpec(1, "silu", limit=0.7, clamp="after"),
    ExpertSpec(1, "relu2", gated=False, limit=0.7),
    ExpertSpec(1, "quick_gelu", limit=7.0, up_offset=1.0),
    ExpertSpec(1, "silu", gate_softcap=4.0, up_softcap=25.0),
    ExpertSpec(1, "gelu", gate_softcap=0.3),
    ExpertSpec(1, "relu", up_softcap=2.0),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@given(g=accumulators, u=accumulators, a_g=st.integers(-60, -40), a_u=st.integers(-60, -40))
@settings(max_examples=50)
def test_activations(spec: ExpertSpec, g: int, u: int, a_g: int, a_u: int) -> None:
    """Against the float reference. The offset of up is a bias, so it is in the accumulator already."""
    limits = limit_words("", spec, spec.limit)
    number = RELU if spec.square else ACTIVATIONS.index(spec.activation)
    form = Form(number, int(spec.gated), int(spec.square), **limits, **cap_words(spec))
    sign, mantissa, exponent = (int(part) for part in activate(g, u, a_g, a_u, form))
    gate, up = (torch.tensor(value, dtype=torch.float64) for value in (g * 2.0**a_g, u * 2.0**a_u - spec.up_offset))
    expected = float(hidden_activations(spec, spec.limit, gate, up if spec.gated else None))
    value = (-1) ** sign * mantissa * 2.0**exponent
    most = abs(float(gate) * (float(up) + spec.up_offset if spec.gated else float(gate) if spec.square else 1))
    # A cap is within 5e-5 of its argument, too, and a factor of s.
    most *= 1 + (spec.gate_softcap is not None) + (spec.up_softcap is not None)
    assert value == pytest.approx(expected, rel=1e-4, abs=most * 6e-5 + abs(float(gate)) * 1e-15)


@given(
    cap=st.floats(2.0**-20, 2.0**20),
    mantissa=st.integers(1 << 15, (1 << 16) - 1),
    exponent=st.integers(-45, 12),
    in_caps=st.booleans(),
)
def test_softcaps(cap: float, mantissa: int, exponent: int, in_caps: bool) -> None:
    """Within the bound of ``docs/numerics.md`` on ``t``, and within the rounding of both mantissas."""
    if in_caps:
        exponent += round(np.log2(cap))
    words = cap_words(ExpertSpec(1, gate_softcap=cap))
    found = softcapped((mantissa, exponent), words["gate_cap"], words["gate_cap_inverse"])
    value, x = float(found[0]) * 2.0 ** float(found[1]), mantissa * 2.0**exponent
    assert value == pytest.approx(cap * np.tanh(x / cap), abs=min(x, 8 * cap) * 5e-5, rel=2.0**-15)
    assert value <= x
    assert softcapped((mantissa, exponent), 0, NO_CAP) == (mantissa, exponent)


@given(g=accumulators, u=accumulators, a_g=exponents, a_u=exponents)
def test_activations_of_anything_are_normalised(g: int, u: int, a_g: int, a_u: int) -> None:
    sign, mantissa, exponent = (int(part) for part in activate(g, u, a_g, a_u, Form()))
    assert mantissa == 0 or 1 << 15 <= mantissa < 1 << 16
    assert -2048 <= exponent < 2048
    assert sign == ((g < 0) != (u < 0))


@pytest.mark.parametrize(("g", "u"), [(0, 5), (5, 0), (0, 0)])
def test_an_activation_of_zero(g: int, u: int) -> None:
    assert [int(part) for part in activate(g, u, 0, 0, Form())][1:] == [0, EXP_MIN]


def test_a_very_negative_gate_gives_zero() -> None:
    assert int(activate(-(1 << 46), 1, 0, 0, Form())[1]) == 0


mantissas = st.just(0) | st.integers(1 << 15, (1 << 16) - 1)


@given(
    mantissa=hnp.arrays(np.int64, (2, 64), elements=mantissas),
    exponent=hnp.arrays(np.int64, (2, 64), elements=st.integers(-20, 20)),
    sign=hnp.arrays(np.int64, (2, 64), elements=st.integers(0, 1)),
)
@settings(deadline=None)
def test_requantised_blocks(mantissa: np.ndarray, exponent: np.ndarray, sign: np.ndarray) -> None:
    q, block_exponents = requantise(sign, mantissa, exponent)
    assert q.dtype == np.int8 and q.shape == (2, 2, 32) and block_exponents.shape == (2, 2)
    value = ((1 - 2 * sign) * np.ldexp(mantissa.astype(float), exponent)).reshape(2, 2, 32)
    step = np.ldexp(1.0, block_exponents)[..., None]
    error = np.abs(q * step - value)
    assert (error <= np.where(np.abs(q) == 127, step, step / 2)).all()
    busy = value.any(axis=2)
    assert (np.abs(q).max(axis=2)[busy] >= 64).all()
    assert (block_exponents[~busy] == EXP_ZERO).all()


def test_a_block_of_zeros() -> None:
    q, exponent = requantise(np.ones(32), np.zeros(32, np.int64), np.full(32, EXP_MIN))
    assert not q.any() and exponent.tolist() == [EXP_ZERO]


def test_the_largest_mantissa_is_held_at_127() -> None:
    q, exponent = requantise([1] + 31 * [0], [65535] + 31 * [0], [0] + 31 * [EXP_MIN])
    assert (q[0, 0], exponent[0]) == (-127, 9)
