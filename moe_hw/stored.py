"""Images on disk: a directory with a file for each layer, and a manifest that is written last.

Layers may be written in any order and by several processes. Each has a record beside it until the manifest is there, so
a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moe_hw.arch import Arch
from moe_hw.errors import ImageError, SetupError, UsageError
from moe_hw.formats import layer_format
from moe_hw.image import LayerImage, Segment
from moe_hw.quantised import CodedLayer
from moe_hw.registers import LAYOUT_VERSION
from moe_hw.spec import LayerSpec

MANIFEST = "manifest.json"


class StoredLayer:
    """A layer of an image on disk.

    Members:
        name: the layer's name in its model.
        spec: its spec.
        weight_format: name of its weight formats.
        bits: bits of the shared expert's codes.
        widths: bits of each routed expert's codes.
        size: bytes of the whole image.
        config_hash: of the accelerator that it was packed for.
    """

    def __init__(self, path: Path, config_hash: int, record: dict[str, Any]):
        self.name = str(record["name"])
        self.spec = LayerSpec.from_dict(record["spec"])
        self.weight_format = str(record["weight_format"])
        formats = layer_format(self.weight_format)
        self.bits = formats.format.bits
        self.widths = tuple(form.bits for form in formats.of(self.spec.router.experts))
        self.size = int(record["size"])
        self.config_hash = config_hash
        self._path = path / str(record["file"])
        self._segments = [(str(s["name"]), int(s["offset"]), int(s["crc32"])) for s in record["segments"]]
        if not self._path.is_file():
            raise ImageError(f"{self._path}: expected the image of {self.name}, got no file; pack the model again")
        if (found := self._path.stat().st_size) != self.size:
            raise ImageError(f"{self._path}: expected {self.size} bytes, got {found}; pack the model again")

    def segments(self) -> Iterator[Segment]:
        """As ``LayerImage.segments``, from the file.

        Raises:
            ImageError: a segment's bytes are not those that were packed.
        """
        ends = [offset for _, offset, _ in self._segments[1:]] + [self.size]
        with self._path.open("rb") as file:
            for (name, offset, checksum), end in zip(self._segments, ends, strict=True):
                file.seek(offset)
                data = file.read(end - offset)
                if zlib.crc32(data) != checksum or len(data) != end - offset:
                    raise ImageError(
                        f"{self._path}: expected CRC-32 {checksum:#010x} of {name}, got {zlib.crc32(data):#010x}; "
                        "the file is corrupt, pack the model again"
                    )
                yield name, offset, np.frombuffer(data, np.uint8)


class Image:
    """An image directory.

    Members:
        layers: its layers, in model order.
        arch: sizes of the accelerator that it was packed for.
    """

    def __init__(self, layers: list[StoredLayer], arch: Arch):
        self.layers = layers
        self.arch = arch


def open_image(path: str | os.PathLike[str]) -> Image:
    """Open an image directory. Sizes are checked now, checksums when a segment is read.

    Raises:
        ImageError: there is no whole image of this version; the line says what is wrong.
    """
    root = Path(path)
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        version = manifest["layout_version"]
        if version != LAYOUT_VERSION:
            raise ImageError(f"{root}: expected layout version {LAYOUT_VERSION}, got {version}; pack the model again")
        arch = Arch(**manifest["arch"])
        config_hash = int(manifest["config_hash"], 16)
        if config_hash != arch.hash:
            raise ImageError(
                f"{root}: expected configuration hash {arch.hash:016x} of its sizes, got {config_hash:016x}; "
                "pack the model again"
            )
        return Image([StoredLayer(root, config_hash, record) for record in manifest["layers"]], arch)
    except OSError as error:
        raise ImageError(
            f"{root}: expected an image with a {MANIFEST}, got none ({error.strerror}); run `moe-hw pack`, "
            "or run it again if it was interrupted"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise ImageError(f"{root / MANIFEST}: expected a manifest, got {error!r}; pack the model again") from error


def write_image(
    path: str | os.PathLike[str],
    layers: Iterable[tuple[str, CodedLayer]],
    arch: Arch,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write an image directory; it counts as one only when everything is written.

    Parameters:
        path: the directory; an image that is there is replaced.
        layers: name and weights of every layer, taken one at a time.
        arch: sizes of the accelerator.
        progress: told each segment before it is written.

    Raises:
        UsageError: ``path`` exists and is not an image.
        ImageError: a layer has no image.
        SetupError: the directory cannot be written.
    """
    begin_image(path, arch, source="")
    count = 0
    for name, layer in layers:
        write_layer(path, count, name, layer, arch, "", progress)
        count += 1
    finish_image(path, count, arch)


def begin_image(path: str | os.PathLike[str], arch: Arch, source: str) -> set[int]:
    """Make a directory for an image of what ``source`` names; returns the layers that are there from a run before.

    Layers of another source, for another accelerator, and a whole image are removed.

    Raises:
        UsageError: ``path`` exists and is not an image.
        SetupError: the directory cannot be written.
    """
    root = Path(path)
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        entries = sorted(root.iterdir())
        for entry in entries:
            if not (entry.name.startswith(MANIFEST) or entry.match("layer-*.bin") or entry.match("layer-*.json*")):
                raise UsageError(
                    f"{root}: expected an image or an empty directory, got {entry.name}; choose another path"
                )
        whole = (root / MANIFEST).exists()
        (root / MANIFEST).unlink(missing_ok=True)
        there = set() if whole or not source else set(_layers_of(root, arch, source))
        kept = {file.name for number in there for file in _files(root, number)}
        for entry in entries:
            if entry.name not in kept:
                entry.unlink(missing_ok=True)
        return there


def write_layer(
    path: str | os.PathLike[str],
    number: int,
    name: str,
    layer: CodedLayer,
    arch: Arch,
    source: str,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write a layer of an image that was begun; it counts as one only when all of it is written.

    Raises:
        ImageError: the layer has no image.
        SetupError: the directory cannot be written.
    """
    root, image = Path(path), LayerImage(layer, arch)
    data_file, record_file = _files(root, number)
    segments = []
    if progress:
        progress(f"{name}: quantising")
    with _writing(root):
        with data_file.open("wb") as file:
            for segment, offset, data in image.segments():
                if progress:
                    progress(f"{name}: {segment}")
                assert file.tell() == offset
                file.write(data.tobytes())
                segments.append({"name": segment, "offset": offset, "crc32": zlib.crc32(data.tobytes())})
            assert file.tell() == image.size
        record = {
            "name": name,
            "spec": image.spec.as_dict(),
            "weight_format": layer.format_name,
            "file": data_file.name,
            "size": image.size,
            "segments": segments,
        }
        _replace(record_file, {"source": source, "config_hash": f"{arch.hash:016x}", "record": record})


def finish_image(path: str | os.PathLike[str], count: int, arch: Arch) -> None:
    """Write the manifest of an image whose ``count`` layers have all been written.

    Raises:
        SetupError: the directory cannot be written.
    """
    root = Path(path)
    with _writing(root):
        files = [_files(root, number)[1] for number in range(count)]
        manifest = {
            "layout_version": LAYOUT_VERSION,
            "config_hash": f"{arch.hash:016x}",
            "arch": arch.as_dict(),
            "layers": [json.loads(file.read_text())["record"] for file in files],
        }
        _replace(root / MANIFEST, manifest)
        for file in files:
            file.unlink()


def _files(root: Path, number: int) -> tuple[Path, Path]:
    """A layer's bytes, and the record that they are whole."""
    return root / f"layer-{number}.bin", root / f"layer-{number}.json"


def _layers_of(root: Path, arch: Arch, source: str) -> Iterator[int]:
    """The layers of a source that are whole."""
    for file in root.glob("layer-*.json"):
        try:
            number, found = int(file.stem.removeprefix("layer-")), json.loads(file.read_text())
            size = found["record"]["size"]
        except (ValueError, KeyError, TypeError):
            continue
        data = _files(root, number)[0]
        ours = found.get("source") == source and found.get("config_hash") == f"{arch.hash:016x}"
        if ours and data.is_file() and data.stat().st_size == size:
            yield number


def _replace(file: Path, values: object) -> None:
    """Write JSON that is there as a whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(partial, file)


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise SetupError(f"{root}: cannot write the image: {reason}; free space or choose another path") from error
