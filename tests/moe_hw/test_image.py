"""Images: the layout by brute force, records byte by byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_hw.arch import Arch
from moe_hw.formats import FORMATS, ROUTER, QuantisedMatrix, WeightFormat, quantise_tokens
from moe_hw.image import (
    LayerImage,
    aligned,
    input_record,
    matrix_bytes,
    matrix_segment,
    read_output,
    read_routing,
)
from moe_hw.layer import random_layer
from moe_hw.quantised import QuantisedLayer
from moe_hw.registers import LAYER, LAYER_MAGIC
from tests.moe_hw.layers import SPECS
from tests.moe_hw.scales import SCALES
from tests.moe_hw.test_twins_array import random_matrix

ARCH = Arch(columns=4)
FORMS = [*FORMATS.values(), ROUTER]


def unpack(segment: np.ndarray, rows: int, blocks: int, form: WeightFormat, columns: int) -> QuantisedMatrix:
    """Section 2 of ``docs/memory-image.md``, a bit at a time."""
    beat_bytes, groups = 4 * columns, -(-rows // columns)
    codes = np.zeros((groups * columns, 32 * blocks), np.int64)
    scales = np.zeros((groups * columns, blocks), np.int64)
    beat = 0

    def next_beat() -> list[int]:
        nonlocal beat
        beat += 1
        return segment[(beat - 1) * beat_bytes : beat * beat_bytes].tolist()

    scale_beat: list[int] = []
    for tile in range(groups * blocks):
        group, block = divmod(tile, blocks)
        if tile % 4 == 0:
            scale_beat = next_beat()
            used = min(4, groups * blocks - tile) * columns
            assert not any(scale_beat[used:])
        for column in range(columns):
            scales[group * columns + column, block] = scale_beat[columns * (tile % 4) + column]
        for plane in range(form.bits):
            value = -(1 << form.bits - 1) if plane == 0 else 1 << form.bits - 1 - plane
            plane_beat = next_beat()
            for r in range(32):
                for c in range(columns):
                    bit = columns * r + c
                    codes[group * columns + c, 32 * block + r] += value * (plane_beat[bit // 8] >> bit % 8 & 1)
    assert not segment[beat * beat_bytes :].any() and 0 <= len(segment) - beat * beat_bytes < 64
    assert not codes[rows:].any()
    if form.values:  # a sign and the number of a magnitude
        codes = np.where(codes < 0, -1, 1) * np.array(form.values)[codes & 7]
    frac, f = SCALES[scales[:rows].astype(int)].transpose(2, 0, 1).astype(np.uint8)
    return QuantisedMatrix(codes[:rows], frac, f, (0,), form)


@pytest.mark.parametrize("columns", [4, 8, 32])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (2, 3), (33, 2), (64, 5)])
def test_segments_by_brute_force(rows: int, blocks: int, form: WeightFormat, columns: int) -> None:
    matrix = random_matrix(np.random.default_rng([rows, columns]), rows, blocks, form)
    segment = matrix_segment(matrix, Arch(columns=columns))
    assert segment.dtype == np.uint8 and len(segment) == aligned(matrix_bytes(rows, blocks, form.bits, columns))
    found = unpack(segment, rows, blocks, form, columns)
    assert np.array_equal(found.codes, matrix.codes)
    assert np.array_equal(found.frac, matrix.frac) and np.array_equal(found.f, matrix.f)


@pytest.mark.parametrize(("columns", "channels"), [(8, 2), (128, 8)])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (33, 2), (257, 5)])
def test_channels_have_the_rows_of_their_columns(
    rows: int, blocks: int, form: WeightFormat, columns: int, channels: int
) -> None:
    arch = Arch(columns=columns, channels=channels)
    matrix = random_matrix(np.random.default_rng([rows, columns]), rows, blocks, form)
    segment = matrix_segment(matrix, arch)
    size = matrix_bytes(rows, blocks, form.bits, columns)
    assert len(segment) % (256 * channels) == 0 and 0 <= len(segment) - size < 256 * channels
    turns = segment.reshape(-1, channels, 256)
    share = columns // channels
    groups = -(-rows // columns)
    for channel in range(channels):
        part = turns[:, channel].reshape(-1)
        assert not part[size // channels :].any()
        part = np.resize(part[: size // channels], aligned(size // channels))
        part[size // channels :] = 0
        found = unpack(part, groups * share, blocks, form, share)
        for row in range(groups * share):
            group, column = divmod(row, share)
            whole = group * columns + channel * share + column
            if whole < rows:
                assert np.array_equal(found.codes[row], matrix.codes[whole])
                assert np.array_equal(found.scales[row], matrix.scales[whole])
            else:
                assert not found.codes[row].any()


@pytest.mark.parametrize("form", ["int4", "int8", "int3,0=int8"])
@pytest.mark.parametrize(("columns", "channels"), [(4, 1), (8, 1), (32, 1), (32, 4)])
@pytest.mark.parametrize("name", SPECS)
def test_segments_lie_where_the_descriptor_says(name: str, columns: int, channels: int, form: str) -> None:
    layer = QuantisedLayer(random_layer(SPECS[name]), form)
    arch = Arch(columns=columns, channels=channels)
    spec, image = layer.spec, LayerImage(layer, arch)
    unit = 64 * channels  # of addresses: 64 bytes of each channel
    memory = np.full(image.size, 0xAA, np.uint8)
    end = 0
    for _, offset, data in image.segments():
        assert offset % arch.segment_bytes == 0 and 0 <= offset - end < arch.segment_bytes
        end = offset + len(data)
        memory[offset:end] = data
    assert end == image.size

    words = LAYER.unpack(memory[: LAYER.size_bytes].view("<u4"))
    assert words["magic"] == LAYER_MAGIC
    assert {key: words[key] for key in layer.descriptor} == layer.descriptor

    def holds(address: int, matrix: QuantisedMatrix) -> bool:
        segment = matrix_segment(matrix, arch)
        return bool(np.array_equal(memory[unit * address : unit * address + len(segment)], segment))

    assert holds(words["router_address"], layer.router)
    first = LAYER.size_bytes
    entries = memory[first : first + 4 * spec.router.experts].view("<u4").tolist()
    for index, (entry, form) in enumerate(zip(entries, layer.formats, strict=True)):
        address, bits = entry & (1 << 28) - 1, entry >> 28
        assert bits == form.bits
        assert holds(address, layer.expert(index).gate_up)
        assert holds(address + (1 + 4 * bits) * words["expert_down"], layer.expert(index).down)
    if layer.shared:
        assert holds(words["shared_address"], layer.shared.gate_up)
        down = words["shared_address"] + (1 + 4 * words["shared_bits"]) * words["shared_down"]
        assert holds(down, layer.shared.down)
    else:
        assert words["shared_address"] == words["shared_down"] == 0


@given(seed=st.integers(0, 99), tokens=st.integers(0, 5), hidden=st.sampled_from([1, 2, 31, 32, 33, 96]))
@settings(deadline=None)
def test_input_record(seed: int, tokens: int, hidden: int) -> None:
    batch = quantise_tokens(torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed)))
    record = input_record(batch)
    lines = record.reshape(tokens, 2, -(-hidden // 32), 64)
    for half, mantissas in enumerate((batch.hi, batch.lo)):
        assert np.array_equal(lines[:, half, :, :32].view(np.int8), mantissas)
        exponents = [int.from_bytes(line.tobytes(), "little", signed=True)
                     for line in lines[:, half, :, 32:34].reshape(-1, 2)]  # fmt: skip
        assert exponents == batch.exponents.ravel().tolist()
    assert not lines[..., 34:].any()


def test_output_without_its_padding() -> None:
    words = np.arange(3 * 64, dtype="<f4").reshape(3, 64)
    output = read_output(words.view(np.uint8).ravel(), 3, SPECS["odd"])
    assert output.dtype == torch.float32 and torch.equal(output, torch.from_numpy(words[:, :33].copy()))


@pytest.mark.parametrize("name", SPECS)
def test_routing_without_the_shared_expert(name: str) -> None:
    spec = SPECS[name]
    entries = spec.router.top_k + (spec.shared is not None)
    record = np.zeros((2, entries, 2), "<u4")
    record[..., 0] = np.arange(2 * entries).reshape(2, entries)
    record[..., 1] = (np.arange(2 * entries, dtype="<f4") / 8).view("<u4").reshape(2, entries)
    experts, weights = read_routing(record.view(np.uint8).ravel(), 2, spec)
    assert experts.dtype == torch.int64 and weights.dtype == torch.float32
    expected = np.arange(2 * entries).reshape(2, entries)[:, : spec.router.top_k]
    assert experts.tolist() == expected.tolist() and weights.tolist() == (expected / 8).tolist()
