"""Image directories: round trips, interruptions, damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_hw.arch import Arch
from moe_hw.errors import ImageError, SetupError, UsageError
from moe_hw.image import LayerImage
from moe_hw.layer import random_layer
from moe_hw.quantised import QuantisedLayer
from moe_hw.registers import LAYOUT_VERSION
from moe_hw.stored import open_image, write_image
from tests.moe_hw.layers import SPECS

ARCH = Arch(columns=4)


def layers(*names: str) -> list[tuple[str, QuantisedLayer]]:
    formats = {"odd": "int5,1-2=int8"}
    return [(name, QuantisedLayer(random_layer(SPECS[name]), formats.get(name, "int4"))) for name in names]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_image(tmp_path / "image", layers("odd", "twos"), ARCH)
    return tmp_path / "image"


def test_directory_round_trip(image: Path) -> None:
    opened = open_image(image)
    assert opened.arch == ARCH and [layer.name for layer in opened.layers] == ["odd", "twos"]
    for stored, (name, quantised) in zip(opened.layers, layers("odd", "twos"), strict=True):
        packed = LayerImage(quantised, ARCH)
        assert (stored.spec, stored.bits, stored.size) == (SPECS[name], packed.bits, packed.size)
        assert stored.widths == packed.widths
        assert stored.weight_format == quantised.format_name and stored.config_hash == ARCH.hash
        for found, expected in zip(stored.segments(), packed.segments(), strict=True):
            assert found[:2] == expected[:2] and np.array_equal(found[2], expected[2])


def test_packing_again_gives_the_same_bytes(image: Path) -> None:
    before = {file.name: file.read_bytes() for file in image.iterdir()}
    write_image(image, layers("odd", "twos"), ARCH)
    assert {file.name: file.read_bytes() for file in image.iterdir()} == before


def test_packing_over_a_larger_image_leaves_nothing_of_it(image: Path) -> None:
    write_image(image, layers("ones"), ARCH)
    assert sorted(file.name for file in image.iterdir()) == ["layer-0.bin", "manifest.json"]


def test_progress_names_layers_and_segments(tmp_path: Path) -> None:
    lines: list[str] = []
    write_image(tmp_path, layers("twos"), ARCH, lines.append)
    segments = ["quantising", "descriptor", "router", "expert 0", "expert 1", "shared"]
    assert lines == [f"twos: {segment}" for segment in segments]


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"expected an image or an empty directory, got thesis\.tex; choose another"):
        write_image(tmp_path, layers("ones"), ARCH)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="cannot write the image: "):
        write_image(tmp_path / "file" / "image", layers("ones"), ARCH)


def test_an_interrupted_pack_is_not_an_image(image: Path) -> None:
    def interrupt(line: str) -> None:
        if line == "odd: expert 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_image(image, layers("odd"), ARCH, interrupt)
    with pytest.raises(ImageError, match=r"expected an image with a manifest\.json, got none"):
        open_image(image)
    write_image(image, layers("odd"), ARCH)
    assert len(open_image(image).layers) == 1


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "manifest.json").unlink(), r"expected an image with a manifest\.json, got none"),
        (lambda path: (path / "manifest.json").write_text('{"layers": '), "expected a manifest, got JSONDecodeError"),
        (lambda path: (path / "manifest.json").write_text("[]"), "expected a manifest, got TypeError"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"), "expected a manifest, got UnicodeDecodeError"),
        (edit(lambda m: m.update(layout_version=99)), f"expected layout version {LAYOUT_VERSION}, got 99; pack the"),
        (edit(lambda m: m.pop("arch")), "expected a manifest, got KeyError"),
        (edit(lambda m: m["arch"].update(columns=8)), "expected configuration hash .* of its sizes, got"),
        (edit(lambda m: m["layers"][0].update(weight_format="int7")), "expected a manifest, got UsageError"),
        (edit(lambda m: m["layers"][1]["spec"].pop("router")), "expected a manifest, got KeyError"),
        (lambda path: (path / "layer-1.bin").unlink(), "expected the image of twos, got no file"),
        (lambda path: (path / "layer-0.bin").write_bytes(b"short"), r"layer-0\.bin: expected \d+ bytes, got 5"),
    ],
)
def test_damage_that_opening_sees(image: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(image)
    with pytest.raises(ImageError, match=message):
        open_image(image)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nothing: expected an image with a manifest.json, got none .*`moe-hw pack`"):
        open_image(tmp_path / "nothing")


def test_corrupt_bytes_are_found_in_their_segment(image: Path) -> None:
    layer = open_image(image).layers[0]
    names, offsets = zip(*((name, offset) for name, offset, _ in layer.segments()), strict=True)
    file = image / "layer-0.bin"
    good = file.read_bytes()
    for name, offset in zip(names, offsets, strict=True):
        file.write_bytes(good[: offset + 5] + bytes([good[offset + 5] ^ 1]) + good[offset + 6 :])
        with pytest.raises(ImageError, match=f"expected CRC-32 0x.* of {name}, got 0x.*; the file is corrupt"):
            list(layer.segments())


def test_segments_are_read_one_at_a_time(image: Path) -> None:
    """Damage behind the segments that are read is not seen: nothing was read ahead."""
    file = image / "layer-0.bin"
    layer = open_image(image).layers[0]
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    segments = layer.segments()
    assert [next(segments)[0] for _ in range(3)] == ["descriptor", "router", "expert 0"]
