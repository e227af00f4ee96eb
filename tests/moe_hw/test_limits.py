"""The limits of an accelerator, against numbers worked out by hand and against the rules for commands."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moe_hw.arch import ROWS, SEGMENT_ALIGN, TILES_PER_SCALE_BEAT, Arch
from moe_hw.errors import DeviceError
from moe_hw.formats import layer_format
from moe_hw.layer import random_layer
from moe_hw.limits import Footprint, check_layer
from moe_hw.quantised import QuantisedLayer
from moe_hw.registers import COMMAND, LAYER_MAGIC, ONE, Status
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec
from tests.moe_hw.rules import refusal

SPEC = LayerSpec(65, RouterSpec(9, 2), ExpertSpec(33), SharedSpec(97, gated=True))


def test_footprint_of_an_odd_layer() -> None:
    footprint = Footprint(SPEC, Arch(columns=8), bits=8)
    assert footprint.router_groups == 2  # 10 rows
    assert footprint.vector_blocks == 2 * 3
    assert footprint.choices == 2 + 1
    assert footprint.input_bytes(5) == 5 * 2 * 3 * 64
    assert footprint.hidden_bytes(5) == 5 * (2 * 2 + 4) * 64
    assert (footprint.output_bytes(5), footprint.routing_bytes(5)) == (5 * 96 * 4, 5 * 3 * 8)
    assert footprint.token_bytes(5) == 64 + 5 * 3 * 66 + 5 * 96 * 4 + 5 * 3 * 8 + 64
    # Router: 2 groups x 3 blocks x 4 passes x 2 halves. Tiles of an expert: 96 I x H rows of blocks / 8 columns.
    assert footprint.array_cycles(5, [0] * 10) == 5 * (48 + 2 * 2 * 12 * 2 * 3 + 2 * 12 * 4 * 3)


def test_groups_of_more_columns_than_a_block() -> None:
    # Groups of 128 columns: 1 of 65 outputs, 1 of 2 x 33 neurons, 2 of 2 x 97, all times blocks of inputs.
    footprint = Footprint(SPEC, Arch(columns=128), 4)
    assert footprint.array_cycles(1, [0, 1]) == 1 * 3 * 8 + 2 * (1 * 3 + 1 * 2) + (2 * 3 + 1 * 4)


@pytest.mark.parametrize(
    ("sizes", "tokens", "slots", "chunk"),
    [
        ({}, 64, 16, 3),
        ({"max_tokens": 2}, 2, 16, 3),
        ({"slots": 2}, 64, 2, 3),
        ({"vector_blocks": 64}, 64, 5, 3),
        ({"logit_words": 8}, 64, 4, 3),
        ({"combine_elements": 4096}, 64, 16, 2),
        ({"combine_elements": 256}, 4, 16, 2),
        ({"combine_elements": 64}, 1, 16, 2),
        ({"columns": 32, "combine_elements": 64}, 0, 16, 0),
    ],
)
def test_cut_of_the_largest_command(sizes: dict[str, int], tokens: int, slots: int, chunk: int) -> None:
    arch = Arch(**sizes)
    footprint = Footprint(SPEC, arch, 4)
    assert footprint.max_tokens() == tokens
    assert (footprint.slots(), footprint.chunk_blocks(max(tokens, 1))) == (slots, chunk)
    if tokens:
        check_layer(SPEC, arch)
    else:
        with pytest.raises(DeviceError, match="96 sums per token, this accelerator at most 64; .* combine_elements"):
            check_layer(SPEC, arch)


def power(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low.bit_length() - 1, high.bit_length() - 1).map(lambda exponent: 1 << exponent)


@st.composite
def archs(draw: st.DrawFn) -> Arch:
    channels = draw(st.sampled_from([1, 1, 2, 8]))
    return Arch(
        columns=channels * draw(power(4, 128)),
        channels=channels,
        vector_blocks=draw(power(64, 1 << 12)),
        max_tokens=draw(power(1, 1024)),
        slots=draw(power(1, 128)),
        logit_words=draw(power(2, 512)),
        combine_elements=draw(power(64, 1 << 18)),
    )


@st.composite
def specs(draw: st.DrawFn) -> LayerSpec:
    widths = st.integers(1, 1200)
    experts = draw(st.integers(1, 256))
    score = draw(st.sampled_from(["softmax", "given"]))
    gates = st.booleans() if score == "softmax" else st.just(False)
    shared = draw(st.none() | st.builds(SharedSpec, widths, gated=gates))
    router = RouterSpec(experts, draw(st.integers(1, min(experts, 12))), score)
    expert = draw(st.builds(ExpertSpec, widths, gated=st.booleans(), bias=st.booleans()))
    return LayerSpec(draw(widths), router, expert, shared)


def descriptor(spec: LayerSpec, bits: int) -> dict[str, int]:
    return {
        "magic": LAYER_MAGIC, "hidden_blocks": spec.hidden_blocks, "input_blocks": spec.input_blocks,
        "inter_blocks": spec.inter_blocks, "given_routes": int(spec.router.given), "gated": int(spec.expert.gated),
        "square": int(spec.expert.square), "activation": 0,
        "shared_blocks": spec.shared_blocks, "experts": spec.router.experts, "top_k": spec.router.top_k,
        "shared_gate": int(spec.shared_gate), "shared_bits": bits,
        "router_bits": 16, "scale": ONE,
    }  # fmt: skip


@given(arch=archs(), spec=specs(), bits=st.sampled_from([2, 4, 5, 8]), data=st.data())
def test_every_cut_is_accepted(arch: Arch, spec: LayerSpec, bits: int, data: st.DataObject) -> None:
    footprint = Footprint(spec, arch, bits)
    largest = footprint.max_tokens()
    assume(largest)
    tokens = data.draw(st.sampled_from([1, largest]) | st.integers(1, largest))
    cut = footprint.cut(tokens)
    check_layer(spec, arch)
    COMMAND.pack(cut)
    layer = descriptor(spec, bits)
    assert refusal(arch, layer, cut) == Status.OK
    # As few jobs and chunks as there can be.
    assert refusal(arch, layer, cut | {"slots": cut["slots"] + 1}) != Status.OK
    if cut["chunk_blocks"] < spec.hidden_blocks:
        more = min(spec.hidden_blocks, cut["chunk_blocks"] + granule(arch))
        assert refusal(arch, layer, cut | {"chunk_blocks": more}) == Status.COMBINE_BUFFER_FULL
    # One token more than the largest command is too many.
    assert refusal(arch, layer, footprint.cut(largest + 1)) in (Status.BAD_TOKENS, Status.BAD_CUT)


@given(arch=archs(), spec=specs())
def test_a_layer_is_refused_if_no_token_fits(arch: Arch, spec: LayerSpec) -> None:
    fits = Footprint(spec, arch, 4).max_tokens() > 0
    try:
        check_layer(spec, arch)
    except DeviceError:
        assert not fits
    else:
        assert fits


def granule(arch: Arch) -> int:
    """Blocks between places of a matrix where a chunk may begin: whole scale beats, and 64 bytes of each channel."""
    beat, unit = 4 * arch.columns, SEGMENT_ALIGN * arch.channels
    blocks = 1
    while True:
        tiles, rest = divmod(ROWS * blocks, arch.columns)
        scale_beats, odd = divmod(tiles, TILES_PER_SCALE_BEAT)
        if not rest and not odd and all(
            scale_beats * (1 + TILES_PER_SCALE_BEAT * bits) * beat % unit == 0 for bits in (4, 8)
        ):
            return blocks
        blocks += 1


@given(arch=archs(), spec=specs(), bits=st.sampled_from([2, 4, 5, 8]), data=st.data())
def test_every_chunk_begins_on_a_scale_beat_and_on_a_unit(
    arch: Arch, spec: LayerSpec, bits: int, data: st.DataObject
) -> None:
    footprint = Footprint(spec, arch, bits)
    largest = footprint.max_tokens()
    assume(largest)
    cut = footprint.cut(data.draw(st.integers(1, largest)))
    chunk = cut["chunk_blocks"]
    if chunk >= spec.hidden_blocks:
        assert (chunk, cut["chunk_stride"], cut["shared_chunk_stride"]) == (spec.hidden_blocks, 0, 0)
        return
    beat = ROWS * arch.columns // 8
    for name, blocks in (("chunk_stride", spec.inter_blocks), ("shared_chunk_stride", spec.shared_blocks)):
        for number in range(-(-spec.hidden_blocks // chunk)):
            group, rest = divmod(number * chunk * ROWS, arch.columns)
            scale_beat, odd = divmod(group * blocks, TILES_PER_SCALE_BEAT)
            assert rest == odd == 0
            place = scale_beat * (1 + TILES_PER_SCALE_BEAT * bits) * beat
            assert place == SEGMENT_ALIGN * arch.channels * number * cut[name] * (1 + TILES_PER_SCALE_BEAT * bits)


@pytest.mark.parametrize(("columns", "channels"), [(4, 1), (8, 1), (32, 1), (64, 1), (64, 16)])
@pytest.mark.parametrize("weight_format", ["int4", "int8", "int4,0-2=int8,7=int2"])
@pytest.mark.parametrize("shared", [None, SharedSpec(97, gated=True), SharedSpec(1, gated=False)])
def test_image_bytes_are_the_size_of_the_image(
    columns: int, channels: int, weight_format: str, shared: SharedSpec | None
) -> None:
    from moe_hw.image import LayerImage

    quantised = QuantisedLayer(random_layer(LayerSpec(65, RouterSpec(9, 2), ExpertSpec(33), shared)), weight_format)
    arch = Arch(columns=columns, channels=channels)
    footprint = Footprint.of(quantised.spec, arch, layer_format(weight_format))
    assert footprint.image_bytes == LayerImage(quantised, arch).size
    # Less than a unit of padding for the descriptor, the router and each down matrix, and for each beat of gate_up's.
    unit, beats = arch.segment_bytes, 1 + 4 * max(footprint.widths)
    padding = footprint.image_bytes - footprint.weight_bytes(range(9))
    assert 0 <= padding < unit * (2 + (1 + 2 * beats) * (9 + (shared is not None)))
