"""Number formats against the definitions of ``docs/numerics.md``, evaluated with exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe_hw.arch import passes_of
from moe_hw.errors import InputError, ModelError, UsageError
from moe_hw.formats import (
    EXP_ZERO,
    FORMATS,
    ROUTER,
    WeightFormat,
    interleave,
    largest_magnitude,
    largest_scale_exponent,
    layer_format,
    quantise,
    quantise_tokens,
    weight_format,
)
from tests.moe_hw.scales import SCALES

ALL_FORMATS = [*FORMATS.values(), ROUTER]
BY_NAME = {"argvalues": ALL_FORMATS, "ids": lambda form: form.name}
INTEGERS = {"argvalues": [form for form in ALL_FORMATS if not form.values], "ids": lambda form: form.name}
MXFP4 = FORMATS["mxfp4"]
ELEMENTS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
"""Magnitudes of E2M1."""

weights = st.floats(-(2.0**20), 2.0**20, width=32)
matrices = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=weights, fill=weights)
widths = st.sampled_from([1, 2, 31, 32, 33, 64, 65])


def quantised(matrix: np.ndarray, form: WeightFormat, exponent: int | None = None):
    tensor = torch.from_numpy(matrix)
    if exponent is None:
        exponent = largest_scale_exponent(largest_magnitude("matrix", tensor), form)
    return quantise(tensor, form, exponent)


def scale_of(byte: int, exponent: int) -> Fraction:
    """The scale that a byte stands for."""
    frac, f = SCALES[byte].tolist()
    return (32 + frac) * Fraction(2) ** (exponent - f - 2)


def smallest_scale(amax: float, largest: int, exponent: int) -> Fraction:
    """The definition, by search: the smallest scale that reaches ``amax`` with the largest code."""
    return min(scale for byte in range(244) if (scale := scale_of(byte, exponent)) * largest >= Fraction(amax))


@pytest.mark.parametrize("form", **INTEGERS)
@given(matrix=matrices)
@settings(deadline=None, max_examples=40)
def test_quantised_weights_follow_the_definition(form: WeightFormat, matrix: np.ndarray) -> None:
    result = quantised(matrix, form)
    assert result.codes.shape == (len(matrix), 32 * result.blocks) and result.blocks == -(-matrix.shape[1] // 32)
    exponent = result.exponents[0]
    padded = np.pad(matrix, ((0, 0), (0, result.codes.shape[1] - matrix.shape[1])))
    for (row, block), frac in np.ndenumerate(result.frac):
        values = padded[row, 32 * block : 32 * block + 32]
        codes = result.codes[row, 32 * block : 32 * block + 32].astype(int)
        f, amax = int(result.f[row, block]), float(np.abs(values).max())
        assert np.abs(codes).max() <= form.largest
        if amax == 0:
            assert (frac, f) == (0, 31) and not codes.any()
            continue
        scale = (32 + int(frac)) * Fraction(2) ** (exponent - f - 2)
        assert scale == smallest_scale(amax, form.largest, exponent)
        assert scale == scale_of(int(result.scales[row, block]), exponent)
        quotients = values.astype(np.float64) / float(scale)
        assert np.array_equal(codes, np.clip(np.rint(quotients), -form.largest, form.largest))


@given(exponents=st.lists(st.integers(-12, 3), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_mxfp4_numbers_are_kept(exponents: list[int], seed: int) -> None:
    """Elements and scales of a checkpoint, also where a scale is larger than the elements need."""
    rng = np.random.default_rng(seed)
    most = rng.integers(1, len(ELEMENTS) + 1, (len(exponents), 1))
    elements = ELEMENTS[rng.integers(0, most, (len(exponents), 32))] * rng.choice([-1, 1], (len(exponents), 32))
    matrix = (elements * 2.0 ** np.array(exponents)[:, None]).astype(np.float32).reshape(1, -1)
    assert np.array_equal(quantised(matrix, MXFP4).dequantise(), matrix)


@given(matrix=matrices)
@settings(deadline=None, max_examples=40)
def test_mxfp4_rounds_to_the_nearest_element(matrix: np.ndarray) -> None:
    result = quantised(matrix, MXFP4)
    padded = np.pad(matrix, ((0, 0), (0, result.codes.shape[1] - matrix.shape[1]))).astype(np.float64)
    for (row, block), f in np.ndenumerate(result.f):
        place = np.s_[row, 32 * block : 32 * block + 32]
        amax = np.abs(padded[place]).max()
        if amax == 0 or f == 31:
            continue
        scale = 2.0 ** (np.floor(np.log2(amax)) - 2)
        wanted = np.minimum(np.abs(padded[place]) / scale, 6)
        distance = np.abs(wanted[:, None] - ELEMENTS)
        found = np.abs(result.dequantise()[place]) / scale
        assert np.array_equal(np.abs(found - wanted), distance.min(axis=1))
        ties = (distance == distance.min(axis=1)[:, None]).sum(axis=1) == 2
        assert np.isin(found[ties], ELEMENTS[::2]).all()  # an even mantissa


@pytest.mark.parametrize("form", **INTEGERS)
@pytest.mark.parametrize("ratio", [1.0, 1 + 2**-23, 1 - 2**-24])
@pytest.mark.parametrize("frac", range(32))
def test_scales_at_their_steps(form: WeightFormat, frac: int, ratio: float) -> None:
    """In the largest orders and in those where scales are coarser."""
    amax = ((32 + frac) * form.largest * ratio * 2.0 ** np.arange(-9, -44, -1)).astype(np.float32)
    result = quantised(amax[:, None], form)
    for row, value in enumerate(amax):
        wanted = smallest_scale(float(value), form.largest, result.exponents[0])
        assert scale_of(int(result.scales[row, 0]), result.exponents[0]) == wanted


@pytest.mark.parametrize("form", **INTEGERS)
def test_the_error_is_at_most_half_a_step(form: WeightFormat) -> None:
    matrix = np.random.default_rng(5).standard_normal((7, 67)).astype(np.float32)
    result = quantised(matrix, form)
    error = np.abs(result.dequantise()[:, :67] - matrix)
    scale = np.ldexp(32.0 + result.frac, result.exponents[0] - result.f.astype(int) - 2).repeat(32, axis=1)[:, :67]
    assert (error <= scale / 2).all()


def test_scales_far_below_the_largest_are_held_at_31() -> None:
    result = quantised(np.array([[1.0], [2.0**-40]], np.float32), FORMATS["int8"])
    assert result.f.ravel().tolist() == [0, 31]
    assert result.codes[1].tolist() == [0] * 32


def test_zeros() -> None:
    result = quantised(np.zeros((2, 33), np.float32), FORMATS["int4"])
    assert result.exponents == (0,) and (result.f == 31).all() and not result.frac.any() and not result.codes.any()


def test_rows_of_zeros_are_appended() -> None:
    result = quantise(torch.ones(2, 1), FORMATS["int4"], 0, rows=5)
    assert result.rows == 5 and not result.codes[2:].any() and (result.f[2:] == 31).all()


def test_interleaved_rows_keep_their_exponents() -> None:
    one, two = (np.random.default_rng(seed).standard_normal((3, 40)).astype(np.float32) for seed in (1, 2))
    parts = [quantised(one, FORMATS["int8"]), quantised(two * 1000, FORMATS["int8"])]
    both = interleave(parts)
    assert both.exponents[0] != both.exponents[1]
    assert np.array_equal(both.dequantise()[0::2], parts[0].dequantise())
    assert np.array_equal(both.dequantise()[1::2], parts[1].dequantise())
    assert np.array_equal(both.scales[1::2], parts[1].scales)


@pytest.mark.parametrize("form", **BY_NAME)
def test_row_norms(form: WeightFormat) -> None:
    result = quantised(np.random.default_rng(3).standard_normal((5, 70)).astype(np.float32), form)
    np.testing.assert_allclose(result.row_norms_squared(), (result.dequantise() ** 2).sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    with pytest.raises(ModelError, match="router: expected finite weights, got NaN or Inf"):
        largest_magnitude("router", torch.tensor([[1.0, value]]))


@pytest.mark.parametrize("form", **BY_NAME)
@given(blocks=st.integers(1, 1023))
def test_shifts_keep_the_accumulator_in_range(form: WeightFormat, blocks: int) -> None:
    """The largest sum of section 3: every dot at its extreme, ``frac`` 31, ``f`` 0, equal exponents."""
    first = passes_of(form.bits)[0]
    slices = [max(-15, -(1 << first - 1)) if i == 0 else 15 for i in range(form.passes)]
    halves = [(-128, 8), (-128, 0)] if form is ROUTER else [(-128, 0)]
    shift, total = form.shift(blocks), 0
    for i, weight in enumerate(slices):
        for token, extra in halves:
            left = shift + 4 * (form.passes - 1 - i) + extra
            assert 24 - left >= 0
            total += abs(((32 * weight * token * 63 << 22) >> 24 - left) + 1)
    assert total * blocks < 1 << 47


def test_shifts_by_hand() -> None:
    assert (FORMATS["int4"].shift(64), FORMATS["int8"].shift(64), ROUTER.shift(64)) == (21, 17, 1)
    assert (FORMATS["int4"].shift(1), ROUTER.shift(1), ROUTER.shift(1023)) == (24, 4, -3)


def test_formats_of_a_layers_experts() -> None:
    plain = layer_format("mxfp4")
    assert (plain.name, plain.format, plain.of(2)) == ("mxfp4", FORMATS["mxfp4"], (FORMATS["mxfp4"],) * 2)
    mixed = layer_format("int4,1-2=int8,4=int2,2=int3")
    assert mixed.format == FORMATS["int4"]
    assert [form.name for form in mixed.of(5)] == ["int4", "int8", "int3", "int4", "int2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int7", "expected int2 or .*, got 'int7'"),
        ("int4,3=int7", "expected int2 or .*, got 'int7'"),
        ("int4,=int8", "weight format 'int4,=int8': expected EXPERT=FORMAT or FIRST-LAST=FORMAT, got '=int8'"),
        (None, "expected int2 or .*, got 'None'"),
        ("int4,\u0663=int8", "expected EXPERT=FORMAT or FIRST-LAST=FORMAT, got "),
        ("int4," + "1" * 5000 + "=int8", "expected EXPERT=FORMAT or FIRST-LAST=FORMAT, got "),
        ("int4,", "expected EXPERT=FORMAT or FIRST-LAST=FORMAT, got ''"),
        ("int4,0=mxfp4", "'int4,0=mxfp4': expected mxfp4 of all experts or of none"),
        ("int4,4=int8", "expected experts 0 to 3 in ascending order, got 4-4"),
        ("int4,2-1=int8", "expected experts 0 to 3 in ascending order, got 2-1"),
    ],
)
def test_formats_that_are_none(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        layer_format(name).of(4)


def test_an_unknown_format() -> None:
    assert weight_format("int8").bits == 8
    names = "int2 or int3 or int4 or int5 or int6 or int8 or mxfp4"
    with pytest.raises(UsageError, match=f"weight format: expected {names}, got 'int7'"):
        weight_format("int7")


@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), widths),
        elements=st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=True),
    )
)
@settings(deadline=None)
def test_tokens_follow_the_definition(x: np.ndarray) -> None:
    tokens = quantise_tokens(x)
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).astype(np.float64).reshape(len(x), -1, 32)
    for (token, block), exponent in np.ndenumerate(tokens.exponents):
        values, mantissas = padded[token, block], tokens.mantissas[token, block].astype(int)
        if np.abs(values).max() < 2.0**-100:
            assert exponent == EXP_ZERO and not mantissas.any()
            continue
        assert 16320 <= np.abs(mantissas).max() <= 32639
        step = Fraction(2) ** int(exponent)
        assert all(abs(int(m) * step - Fraction(float(v))) <= step / 2 for m, v in zip(mantissas, values, strict=True))
        finer = np.rint(np.ldexp(values, 1 - int(exponent)))
        assert np.abs(finer).max() > 32639 or np.abs(values).max() < 2.0 ** (int(exponent) + 15)
    assert np.array_equal(tokens.exponent, tokens.exponents.max(axis=1))


@given(x=hnp.arrays(np.float32, (2, 33), elements=st.floats(-4, 4, width=32)), power=st.integers(-20, 60))
@settings(deadline=None)
def test_powers_of_two_move_the_exponents_alone(x: np.ndarray, power: int) -> None:
    x[np.abs(x) < 2.0**-20] = 0
    one, other = quantise_tokens(x), quantise_tokens(x.astype(np.float64) * 2.0**power)
    empty = one.exponents == EXP_ZERO
    assert np.array_equal(one.hi, other.hi) and np.array_equal(one.lo, other.lo)
    assert np.array_equal(np.where(empty, EXP_ZERO, one.exponents + power), other.exponents)


def test_halves_of_every_mantissa() -> None:
    mantissas = np.arange(-32639, 32640).reshape(-1, 1).astype(np.float64)
    tokens = quantise_tokens(np.concatenate([np.full_like(mantissas, 32639), mantissas], axis=1))
    assert (tokens.exponents == 0).all()
    assert np.array_equal(tokens.mantissas[:, 0, 1], mantissas[:, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_float_type(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.5, -0.25]], dtype=dtype)
    assert quantise_tokens(x).mantissas[0, 0, :2].tolist() == [24576, -4096]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**100, -(2.0**120)])
def test_values_that_cannot_be_represented(value: float) -> None:
    x = torch.zeros(3, 40)
    x[2, 35] = value
    with pytest.raises(InputError, match="token 2, element 35: expected a finite value below 2\\^100, got"):
        quantise_tokens(x)


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(1, 2, 3), torch.zeros(2, 3, dtype=torch.int32)])
def test_other_shapes_and_types(x: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"tokens: expected floats of shape \[tokens, hidden\], got torch"):
        quantise_tokens(x)


def test_no_tokens() -> None:
    tokens = quantise_tokens(torch.zeros(0, 33))
    assert len(tokens) == 0 and tokens.hi.shape == (0, 2, 32) and tokens.exponent.shape == (0,)


def test_tokens_are_cut_by_slices_and_indices() -> None:
    tokens = quantise_tokens(torch.randn(5, 33, generator=torch.Generator().manual_seed(1)))
    assert np.array_equal(tokens[np.array([4, 2])].hi, tokens.hi[[4, 2]])
    assert len(tokens[1:3]) == 2 and np.array_equal(tokens[1:3].lo, tokens.lo[1:3])
