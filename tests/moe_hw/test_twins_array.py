"""The scale-accumulator against section 3 of ``docs/numerics.md`` in Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_hw.formats import (
    FORMATS,
    ROUTER,
    QuantisedMatrix,
    WeightFormat,
    largest_magnitude,
    largest_scale_exponent,
    quantise,
    quantise_tokens,
)
from moe_hw.twins import array
from moe_hw.twins.array import Operand, accumulate, expert_operand, router_operand, weight_slices
from tests.moe_hw.scales import SCALES


def random_matrix(rng: np.random.Generator, rows: int, blocks: int, form: WeightFormat) -> QuantisedMatrix:
    kind = np.int16 if form.bits > 8 else np.int8
    scales = SCALES[rng.integers(0, 244, (rows, blocks))].astype(np.uint8)
    return QuantisedMatrix(
        codes=rng.choice(form.codes, (rows, 32 * blocks)).astype(kind),
        frac=scales[..., 0],
        f=scales[..., 1],
        exponents=(0,),
        format=form,
    )


def random_operand(rng: np.random.Generator, count: int, blocks: int, halves: int) -> Operand:
    parts = tuple(rng.integers(-128, 128, (count, blocks, 32)).astype(np.int8) for _ in range(halves))
    return Operand(parts, rng.choice([-200, -70, -3, -1, 0, 1], (count, blocks)))


def definition(matrix: QuantisedMatrix, operand: Operand) -> list[list[int]]:
    passes, shift = matrix.format.passes, matrix.shift
    result = []
    for vector in range(len(operand.exponents)):
        largest = int(operand.exponent[vector])
        row_acc = []
        for row in range(matrix.rows):
            acc = 0
            for block in range(matrix.blocks):
                codes = [int(code) for code in matrix.codes[row, 32 * block : 32 * block + 32]]
                scale, f = 32 + int(matrix.frac[row, block]), int(matrix.f[row, block])
                distance = min(63, largest - int(operand.exponents[vector, block]))
                for i in range(passes):
                    slices = [code >> 4 * (passes - 1 - i) for code in codes]
                    slices = slices if i == 0 else [value & 15 for value in slices]
                    for j, part in enumerate(operand.slices):
                        dot = sum(a * int(b) for a, b in zip(slices, part[vector, block], strict=True))
                        left = shift + 4 * (passes - 1 - i) + (8 if len(operand.slices) == 2 and j == 0 else 0)
                        right = min(63, 24 - left + f + distance)
                        value = dot * scale << 22
                        acc += (value >> right) + (value >> right - 1 & 1 if right else 0)
            assert abs(acc) < 1 << 47
            row_acc.append(acc)
        result.append(row_acc)
    return result


@pytest.mark.parametrize("form", [*FORMATS.values(), ROUTER], ids=lambda form: form.name)
@pytest.mark.parametrize(("rows", "blocks", "count"), [(1, 1, 1), (3, 2, 2), (5, 3, 4)])
def test_equals_the_definition(form: WeightFormat, rows: int, blocks: int, count: int) -> None:
    rng = np.random.default_rng([form.bits, rows])
    matrix = random_matrix(rng, rows, blocks, form)
    operand = random_operand(rng, count, blocks, 2 if form is ROUTER else 1)
    assert accumulate(matrix, operand).tolist() == definition(matrix, operand)


@pytest.mark.parametrize("form", [*FORMATS.values(), ROUTER], ids=lambda form: form.name)
@pytest.mark.parametrize("sign", [-1, 1])
def test_extremes_are_exact(form: WeightFormat, sign: int) -> None:
    blocks, parts = 40, 2 if form is ROUTER else 1
    matrix = random_matrix(np.random.default_rng(0), 2, blocks, form)
    matrix.codes[:] = sign * form.largest
    matrix.frac[:], matrix.f[:] = 31, 0
    operand = Operand((np.full((1, blocks, 32), -128, np.int8),) * parts, np.zeros((1, blocks), int))
    assert accumulate(matrix, operand).tolist() == definition(matrix, operand)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    matrix, operand = random_matrix(rng, 37, 3, FORMATS["int8"]), random_operand(rng, 5, 3, 1)
    whole = accumulate(matrix, operand)
    monkeypatch.setattr(array, "_CHUNK", 64)
    assert np.array_equal(accumulate(matrix, operand), whole)


@pytest.mark.parametrize("form", [*FORMATS.values(), ROUTER], ids=lambda form: form.name)
def test_slices_make_up_the_code(form: WeightFormat) -> None:
    codes = np.arange(-form.largest, form.largest + 1)
    slices = weight_slices(codes, form.passes)
    assert np.array_equal(sum(part * 16 ** (form.passes - 1 - i) for i, part in enumerate(slices)), codes)
    assert all(part.min() >= 0 for part in slices[1:]) and max(abs(part).max() for part in slices) <= 15


@pytest.mark.parametrize("form", [*FORMATS.values(), ROUTER], ids=lambda form: form.name)
def test_one_unit_is_worth_the_exponent(form: WeightFormat) -> None:
    """The accumulators stand for the dequantised matrix times the quantised tokens."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 70, generator=generator)
    matrix = quantise(weight, form, largest_scale_exponent(largest_magnitude("weight", weight), form))
    tokens = quantise_tokens(torch.randn(4, 70, generator=generator))
    router = form is ROUTER
    acc = accumulate(matrix, router_operand(tokens) if router else expert_operand(tokens))
    mantissas = tokens.mantissas if router else 256 * tokens.hi.astype(int)
    values = np.ldexp(mantissas.astype(float), tokens.exponents[..., None]).reshape(4, -1)
    unit = tokens.exponent[:, None] + matrix.exponents[0] - matrix.shift + (0 if router else 8)
    np.testing.assert_allclose(np.ldexp(acc.astype(float), unit), values @ matrix.dequantise().T, atol=1e-6)


def test_no_vectors() -> None:
    rng = np.random.default_rng(0)
    matrix, operand = random_matrix(rng, 3, 2, FORMATS["int4"]), random_operand(rng, 0, 2, 1)
    assert accumulate(matrix, operand).shape == (0, 3)
