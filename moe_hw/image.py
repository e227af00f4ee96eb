"""What lies where in device memory (``docs/memory-image.md``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from moe_hw.arch import ROWS, SEGMENT_ALIGN, TILES_PER_SCALE_BEAT, Arch
from moe_hw.errors import ImageError
from moe_hw.formats import ROUTER, ZERO_SCALE, QuantisedMatrix, Tokens, WeightFormat
from moe_hw.quantised import CodedLayer, QuantisedExpert
from moe_hw.registers import ENTRY_ADDRESS_BITS, LAYER, LAYER_MAGIC
from moe_hw.spec import LayerSpec

Segment = tuple[str, int, np.ndarray]
"""Name, offset from the descriptor, uint8 bytes."""


def aligned(size: int, unit: int = SEGMENT_ALIGN) -> int:
    """``size`` rounded up to whole units of ``unit`` bytes."""
    return -(-size // unit) * unit


def matrix_bytes(rows: int, blocks: int, bits: int, columns: int) -> int:
    """Bytes of a matrix's scale and plane beats; its segment is padded to whole units of 64 bytes."""
    tiles = -(-rows // columns) * blocks
    return (-(-tiles // TILES_PER_SCALE_BEAT) + tiles * bits) * ROWS * columns // 8


def table_bytes(spec: LayerSpec) -> int:
    """Bytes of a table with a word for each expert."""
    return aligned(4 * spec.router.experts)


def head_bytes(spec: LayerSpec) -> int:
    """Bytes of a layer's descriptor and the tables behind it."""
    return LAYER.size_bytes + (1 + (spec.router.keyed is not None)) * table_bytes(spec)


def quarter_bytes(rows: int, blocks: int, columns: int) -> int:
    """Bytes of a matrix's scale beats: one for every four tiles.

    With as many planes for each tile as its codes of ``bits`` bits have, it is at most ``1 + 4 * bits`` times that, and
    as much if the tiles are a multiple of four.
    """
    return matrix_bytes(rows, blocks, 0, columns)


def router_bytes(spec: LayerSpec, columns: int) -> int:
    """Bytes (:func:`matrix_bytes`) of the router matrix; 0 if routes are given."""
    return matrix_bytes(spec.router_rows, spec.input_blocks, ROUTER.bits, columns)


def down_bytes(spec: LayerSpec, inter_blocks: int, bits: int, columns: int) -> int:
    """Bytes of the down matrix of an expert with ``inter_blocks`` blocks of hidden activations."""
    return matrix_bytes(ROWS * spec.hidden_blocks, inter_blocks, bits, columns)


def expert_bytes(spec: LayerSpec, inter_blocks: int, bits: int, columns: int) -> int:
    """Bytes of both matrices of such an expert, without padding."""
    gate_up = matrix_bytes(spec.first_matrices * ROWS * inter_blocks, spec.input_blocks, bits, columns)
    return gate_up + down_bytes(spec, inter_blocks, bits, columns)


def matrix_segment(matrix: QuantisedMatrix, arch: Arch) -> np.ndarray:
    """A matrix as the accelerator reads it: every channel has the rows of its columns, and its turn after 256 bytes.

    Returns:
        uint8, padded with zeros to whole units of ``arch.segment_bytes``.
    """
    missing = -matrix.rows % arch.columns
    codes = np.pad(_in_memory(matrix.codes, matrix.format), ((0, missing), (0, 0)))
    scales = np.pad(matrix.scales, ((0, missing), (0, 0)), constant_values=ZERO_SCALE)
    columns = arch.sub_array.columns

    def share(rows: np.ndarray, channel: int) -> np.ndarray:
        return rows.reshape(-1, arch.channels, columns, rows.shape[1])[:, channel].reshape(-1, rows.shape[1])

    shares = [
        _tiles(share(codes, channel), share(scales, channel), matrix.format.bits, columns)
        for channel in range(arch.channels)
    ]
    size = aligned(sum(map(len, shares)), arch.segment_bytes)
    segment = np.zeros((arch.channels, size // arch.channels), np.uint8)
    segment[:, : len(shares[0])] = shares
    turn = arch.segment_bytes // arch.channels
    return segment.reshape(arch.channels, -1, turn).transpose(1, 0, 2).reshape(-1)


def _in_memory(codes: np.ndarray, form: WeightFormat) -> np.ndarray:
    """What the planes of codes are made of: two's complement, or a sign and an E2M1 magnitude."""
    if not form.values:
        return codes
    return np.searchsorted(form.values, np.abs(codes)).astype(codes.dtype) | (codes < 0) << form.bits - 1


def _tiles(codes: np.ndarray, scales: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Tiles of 32 x ``columns`` in bit planes, scales before every four; uint8."""
    blocks = scales.shape[1]
    groups = len(codes) // columns
    tiles = groups * blocks
    beats_of_scales = -(-tiles // TILES_PER_SCALE_BEAT)
    beat_bytes = ROWS * columns // 8

    # One entry for each scale beat and the four tiles behind it; the last entry's missing tiles are cut off below.
    beats = np.zeros((beats_of_scales, 1 + TILES_PER_SCALE_BEAT * bits, beat_bytes), np.uint8)
    tile_scales = np.zeros((beats_of_scales * TILES_PER_SCALE_BEAT, columns), np.uint8)
    tile_scales[:tiles] = scales.reshape(groups, columns, blocks).transpose(0, 2, 1).reshape(tiles, columns)
    beats[:, 0] = tile_scales.reshape(beats_of_scales, beat_bytes)

    elements = codes.reshape(groups, columns, blocks, ROWS).transpose(0, 2, 3, 1).reshape(tiles, ROWS * columns)
    planes = np.zeros((beats_of_scales * TILES_PER_SCALE_BEAT, bits, beat_bytes), np.uint8)
    for number in range(bits):
        plane = (elements >> bits - 1 - number) & 1
        planes[:tiles, number] = np.packbits(plane.astype(np.uint8), axis=1, bitorder="little")
    beats[:, 1:] = planes.reshape(beats_of_scales, -1, beat_bytes)

    return beats.reshape(-1)[: (beats_of_scales + tiles * bits) * beat_bytes]


class ExpertRoom(NamedTuple):
    """Where an expert's matrices are, in bytes from its first.

    Attributes:
        quarter: what the descriptor's ``expert_down`` or ``shared_down`` says.
        down: of its down matrix.
        size: of both, padded.
    """

    quarter: int
    down: int
    size: int


def expert_room(spec: LayerSpec, inter_blocks: int, bits: int, arch: Arch) -> ExpertRoom:
    """The room of an expert with ``inter_blocks`` blocks of hidden activations and codes of ``bits`` bits."""
    unit, columns = arch.segment_bytes, arch.columns
    quarter = aligned(quarter_bytes(spec.first_matrices * ROWS * inter_blocks, spec.input_blocks, columns), unit)
    down = quarter * (1 + TILES_PER_SCALE_BEAT * bits)
    return ExpertRoom(quarter, down, down + aligned(down_bytes(spec, inter_blocks, bits, columns), unit))


class Layout(NamedTuple):
    """Where the parts of a layer's image are, in bytes from the descriptor.

    Attributes:
        router: of the router matrix.
        experts: of each routed expert.
        rooms: of each of them, from there.
        shared: of the shared expert.
        shared_room: of it, from there.
        size: of the whole image.
    """

    router: int
    experts: list[int]
    rooms: list[ExpertRoom]
    shared: int
    shared_room: ExpertRoom
    size: int


def layout_of(spec: LayerSpec, arch: Arch, bits: int, widths: Sequence[int]) -> Layout:
    """The layout of a layer whose shared expert has codes of ``bits`` bits, and the routed ones of ``widths``."""
    router = aligned(head_bytes(spec), arch.segment_bytes)
    rooms = [expert_room(spec, spec.inter_blocks, width, arch) for width in widths]
    shared_room = expert_room(spec, spec.shared_blocks, bits, arch)
    first = router + aligned(router_bytes(spec, arch.columns), arch.segment_bytes)
    *experts, shared = accumulate((room.size for room in rooms), initial=first)
    return Layout(router, experts, rooms, shared, shared_room, shared + shared_room.size)


class LayerImage:
    """The image of one layer, made segment by segment.

    Parameters:
        layer: the layer in codes.
        arch: sizes of the accelerator.

    Members:
        spec: the layer's spec.
        bits: bits of the shared expert's codes.
        widths: bits of each routed expert's codes.
        size: bytes of the whole image.
    """

    def __init__(self, layer: CodedLayer, arch: Arch):
        self.layer = layer
        self.arch = arch
        self.spec = spec = layer.spec
        self.bits = layer.format.bits
        self.widths = tuple(form.bits for form in layer.formats)
        self._layout = layout_of(spec, arch, self.bits, self.widths)
        self.size = self._layout.size

    def descriptor(self) -> dict[str, int]:
        """All words of the layer descriptor by name."""
        unit, layout = self.arch.weight_unit, self._layout
        words = self.layer.descriptor | {
            "magic": LAYER_MAGIC,
            "router_address": layout.router // unit,
            "expert_down": layout.rooms[0].quarter // unit,
        }
        if self.spec.shared:
            words |= {"shared_address": layout.shared // unit, "shared_down": layout.shared_room.quarter // unit}
        return words

    def segments(self) -> Iterator[Segment]:
        """Every segment in order of its offset; an expert's two matrices are one.

        Together they fill ``size``, unless the layer leaves out experts.

        Raises:
            ImageError: the layer's image is larger than a descriptor can describe.
        """
        try:
            words = LAYER.pack(self.descriptor())
        except ValueError as error:
            raise ImageError(f"the layer does not fit a descriptor: {error}") from error
        layout = self._layout
        head = np.zeros(layout.router, np.uint8)
        head[: LAYER.size_bytes] = words.astype("<u4").view(np.uint8)
        tables = [self._entries().astype("<u4")]
        if self.layer.correction is not None:
            tables.append(self.layer.correction.table.astype("<i4"))
        for number, table in enumerate(tables):
            first = LAYER.size_bytes + number * table_bytes(self.spec)
            head[first : first + table.nbytes] = table.view(np.uint8)
        yield "descriptor", 0, head
        if self.layer.router is not None:
            yield "router", layout.router, matrix_segment(self.layer.router, self.arch)
        for index in self.layer.stored:
            room = layout.rooms[index]
            yield f"expert {index}", layout.experts[index], self._expert(self.layer.expert(index), room)
        if self.layer.shared is not None:
            yield "shared", layout.shared, self._expert(self.layer.shared, layout.shared_room)

    def _entries(self) -> np.ndarray:
        """The expert table."""
        addresses = [address // self.arch.weight_unit for address in self._layout.experts]
        if max(addresses) >= 1 << ENTRY_ADDRESS_BITS:
            most = self.arch.weight_unit << ENTRY_ADDRESS_BITS
            raise ImageError(f"the layer's experts end beyond {most:,} bytes, the most that its table can say")
        return np.array(addresses, np.uint32) | np.array(self.widths, np.uint32) << ENTRY_ADDRESS_BITS

    def _expert(self, expert: QuantisedExpert, room: ExpertRoom) -> np.ndarray:
        segment = np.zeros(room.size, np.uint8)
        for first, matrix in zip((0, room.down), expert, strict=True):
            data = matrix_segment(matrix, self.arch)
            segment[first : first + len(data)] = data
        return segment


def input_record(tokens: Tokens) -> np.ndarray:
    """The input record of a batch, uint8: for each token the lines of its upper halves, then of its lower ones."""
    count, blocks = tokens.exponents.shape
    lines = np.zeros((count, 2, blocks, SEGMENT_ALIGN), np.uint8)
    lines[:, 0, :, :ROWS] = tokens.hi.view(np.uint8)
    lines[:, 1, :, :ROWS] = tokens.lo.view(np.uint8)
    lines[..., ROWS : ROWS + 2] = tokens.exponents.astype("<i2").view(np.uint8).reshape(count, 1, blocks, 2)
    return lines.reshape(-1)


def routes_record(experts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The record of given routes, uint8; see :meth:`moe_hw.routes.GivenRoutes.rounded`."""
    words = np.stack((experts.astype("<i4").view("<u4"), weights.astype("<f4").view("<u4")), axis=-1)
    return words.reshape(-1).view(np.uint8)


def read_output(data: np.ndarray, tokens: int, spec: LayerSpec) -> torch.Tensor:
    """float32 ``[tokens, hidden]`` from the output's bytes."""
    padded = np.frombuffer(data.tobytes(), "<f4", tokens * ROWS * spec.hidden_blocks).reshape(tokens, -1)
    return torch.from_numpy(padded[:, : spec.hidden].astype(np.float32))


def read_routing(data: np.ndarray, tokens: int, spec: LayerSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts int64, weights float32), both ``[tokens, top_k]``, from the routing record's bytes."""
    entries = spec.router.top_k + (spec.shared is not None)
    words = np.frombuffer(data.tobytes(), "<u4", tokens * entries * 2).reshape(tokens, entries, 2)
    words = words[:, : spec.router.top_k]
    weights = np.ascontiguousarray(words[..., 1]).view("<f4")
    return torch.from_numpy(words[..., 0].astype(np.int64)), torch.from_numpy(weights.astype(np.float32))
