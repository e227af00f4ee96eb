"""The limits of an accelerator, against numbers worked out by hand. The driver's tests hold them against commands."""

from __future__ import annotations

import pytest

from moe_hw.arch import Arch
from moe_hw.errors import DeviceError
from moe_hw.layer import random_layer
from moe_hw.limits import Footprint, check_layer
from moe_hw.quantised import QuantisedLayer
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec

SPEC = LayerSpec(65, RouterSpec(9, 2), ExpertSpec(33), SharedSpec(97, gated=True))


def test_footprint_of_an_odd_layer() -> None:
    footprint = Footprint(SPEC, columns=8, bits=8)
    assert footprint.router_groups == 2  # 10 rows
    assert footprint.token_blocks == 2 * 3 + 4
    assert footprint.input_bytes(5) == 5 * 3 * 66
    assert (footprint.output_bytes(5), footprint.routing_bytes(5)) == (5 * 96 * 4, 5 * 3 * 8)
    # Router: 2 groups x 3 blocks x 4 passes x 2 halves. Tiles of an expert: 96 I x H rows of blocks / 8 columns.
    assert footprint.array_cycles(5) == 5 * (48 + 2 * 2 * 12 * 2 * 3 + 2 * 12 * 4 * 3)


@pytest.mark.parametrize(
    ("sizes", "tokens"),
    [
        ({}, 16),
        ({"max_tokens": 2}, 2),
        ({"token_blocks": 64}, 6),
        ({"combine_elements": 256}, 2),
        ({"logit_words": 8}, 4),
        ({"combine_elements": 64}, 0),
    ],
)
def test_tokens_of_a_command(sizes: dict[str, int], tokens: int) -> None:
    arch = Arch(**sizes)
    assert Footprint(SPEC, arch.columns, 4).max_tokens(arch) == tokens
    if tokens:
        check_layer(SPEC, arch)
    else:
        with pytest.raises(DeviceError, match="96 output elements per token"):
            check_layer(SPEC, arch)


@pytest.mark.parametrize("columns", [4, 8, 32])
@pytest.mark.parametrize("weight_format", ["int4", "int8"])
@pytest.mark.parametrize("shared", [None, SharedSpec(97, gated=True), SharedSpec(1, gated=False)])
def test_image_bytes_are_the_size_of_the_image(
    columns: int, weight_format: str, shared: SharedSpec | None
) -> None:
    from moe_hw.image import LayerImage

    quantised = QuantisedLayer(random_layer(LayerSpec(65, RouterSpec(9, 2), ExpertSpec(33), shared)), weight_format)
    footprint = Footprint(quantised.spec, columns, quantised.format.bits)
    assert footprint.image_bytes == LayerImage(quantised, columns).size
    # Less than a unit of padding for each of the router's and the experts' matrices.
    assert 0 <= footprint.image_bytes - footprint.weight_bytes(9) < 64 * (1 + 2 * (9 + (shared is not None)))
