"""The weight streamer: reads matrix segments ahead of the array and fills the expert buffer."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import enum, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from moe_hw.arch import ROWS, TILES_PER_SCALE_BEAT, Arch
from rtl_gen.bursts import Bursts
from rtl_gen.bus import WORD_COUNT_BITS, burst_layout, word_layout
from rtl_gen.skid_buffer import SkidBuffer
from rtl_gen.types import BITS, address_bits, segment_layout

TILE_BITS = 26
"""Bits of the number of tiles of a matrix."""

RELEASE_DELAY = ROWS + 6
"""Cycles from a load command's decision until the last row has read the plane, and may lose it."""

FEWEST_PLANES = 2
"""Bits of the narrowest code."""

SEGMENTS = 4
"""Segments that can wait for their words."""


class Expected(enum.Enum, shape=2):
    """What the next beat is."""

    NO_SEGMENT = 0
    NO_ROOM = 1  # for scales; and while a segment's first planes are counted
    SCALES = 2
    PLANES = 3


def takes(expected: enum.EnumView) -> Value:
    """Whether a beat is taken in the cycle in which it is there."""
    return expected.as_value()[1]


def scale_queue_depth(arch: Arch) -> int:
    """Scale beats that can wait for their tiles.

    All that the expert buffer's credits allow on their way: one in 9 beats of codes of two bits, and a partial one for
    each segment. They must not stop the bus, on which the vectors that the array waits for may come behind them.
    """
    return arch.expert_beats // (TILES_PER_SCALE_BEAT * FEWEST_PLANES) + 2 * SEGMENTS + 9


class Streamer(wiring.Component):
    """Reads segments (``docs/memory-image.md`` section 2) with many bursts outstanding.

    A burst is requested when the expert buffer has room for all of it. Words are collected to beats; plane beats go to
    the row banks, a ring, scale beats to the accumulators.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    base : In
        Address of the layer descriptor, in units of 64 bytes.
    segments : In(stream of segment_layout(arch))
    bursts : Out(stream of burst_layout(arch)), words : In(stream of word_layout(arch))
        Memory.
    plane_write : Out(1), plane_address : Out, beat : Out(32 * columns)
        Write port of the row banks.
    beat_ready : Out(1), beat_pop : In(1)
        A plane beat can be loaded; a load command has been issued.
    scales : Out(stream of a beat)
    clear : In(1)
        Pulse: forget the errors.
    error : Out(1)
        The memory answered an error; sticky until ``clear``.
    waiting : Out(1)
        Words are outstanding.

    Latency: thirteen cycles from a segment to its first burst, two from a beat to its write port; throughput: a bus
    word a cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "base": In(address_bits(arch)),
                "segments": In(stream.Signature(segment_layout(arch))),
                "bursts": Out(stream.Signature(burst_layout(arch))),
                "words": In(stream.Signature(word_layout(arch))),
                "plane_write": Out(1),
                "plane_address": Out(bits_for(arch.expert_beats - 1)),
                "beat": Out(arch.beat_bits),
                "beat_ready": Out(1),
                "beat_pop": In(1),
                "scales": Out(stream.Signature(arch.beat_bits)),
                "clear": In(1),
                "error": Out(1),
                "waiting": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        per_beat = arch.words_per_beat

        # ---- segments become ranges; how they are to be taken apart waits in a queue ----
        m.submodules.cutter = cutter = Bursts(arch)
        m.submodules.shapes = shapes = SyncFIFOBuffered(width=TILE_BITS + BITS, depth=SEGMENTS)
        segment = Signal(segment_layout(arch))
        tiles = Signal(TILE_BITS)
        planes = Signal(WORD_COUNT_BITS)
        factor, factor_bits = Signal(BITS), Signal(range(BITS + 1))
        beats = Signal(WORD_COUNT_BITS)
        idle = Signal(init=1)  # beside the state: who makes segments waits for it
        m.d.comb += self.segments.ready.eq(idle)
        with m.FSM():
            with m.State("idle"):
                m.d.sync += segment.eq(self.segments.payload)
                with m.If(self.segments.valid):
                    m.d.sync += idle.eq(0)
                    m.next = "tiles"
            with m.State("tiles"):
                m.d.sync += [
                    tiles.eq(segment.groups * segment.blocks),
                    planes.eq(0),
                    factor.eq(segment.bits),
                    factor_bits.eq(BITS),
                ]
                m.next = "planes"
            # A product, but of no multiplier: a bit of the factor a cycle.
            with m.State("planes"):
                m.d.sync += [
                    planes.eq((planes << 1) + Mux(factor[-1], tiles, 0)),
                    factor.eq(factor << 1),
                    factor_bits.eq(factor_bits - 1),
                ]
                with m.If(factor_bits == 1):
                    m.next = "beats"
            with m.State("beats"):
                scale_beats = (tiles + TILES_PER_SCALE_BEAT - 1) >> ceil_log2(TILES_PER_SCALE_BEAT)
                m.d.sync += beats.eq(planes + scale_beats)
                m.next = "queue"
            with m.State("queue"):
                m.d.comb += [shapes.w_en.eq(1), shapes.w_data.eq(Cat(tiles, segment.bits))]
                with m.If(shapes.w_rdy):
                    m.next = "range"
            with m.State("range"):
                m.d.comb += [
                    cutter.ranges.valid.eq(1),
                    cutter.ranges.payload.address.eq(self.base + segment.address),
                    cutter.ranges.payload.words.eq(beats << ceil_log2(per_beat)),
                ]
                with m.If(cutter.ranges.ready):
                    m.d.sync += idle.eq(1)
                    m.next = "idle"

        # ---- credits: room in the ring, in bus words ----
        capacity = arch.expert_beats * per_beat
        room = Signal(range(capacity + 1), init=capacity)
        burst_words = cutter.bursts.payload.length + 1
        has_room = Signal()  # for the burst that waits; until it is taken, there can only be more
        request = cutter.bursts.valid & cutter.bursts.ready
        m.d.sync += has_room.eq(cutter.bursts.valid & ~request & (room >= burst_words))
        m.d.comb += [
            self.bursts.payload.eq(cutter.bursts.payload),
            self.bursts.valid.eq(cutter.bursts.valid & has_room),
            cutter.bursts.ready.eq(self.bursts.ready & has_room),
        ]
        release = Signal(RELEASE_DELAY)
        m.d.sync += release.eq(Cat(self.beat_pop, release))
        scale_taken = Signal()
        freed = Mux(release[-1], per_beat, 0) + Mux(scale_taken, per_beat, 0)
        m.d.sync += room.eq(room + freed - Mux(request, burst_words, 0))

        # ---- words become beats ----
        m.submodules.words = words = SkidBuffer(self.words.payload.shape())  # the bus is far from where the beat is
        wiring.connect(m, wiring.flipped(self.words), words.i)
        lane = Signal(per_beat, init=1)  # where the next word goes, one of them
        # That it is the last one, from a count: the lanes lie where the beat is.
        word, following = Signal(range(per_beat)), Signal(range(per_beat))
        end_of_beat = Signal(init=per_beat == 1)
        m.d.comb += following.eq(word + 1)
        beat = Signal(arch.beat_bits)
        beat_held = Signal()
        expected = Signal(Expected)
        expected_next = Signal(Expected)
        m.d.comb += expected_next.eq(expected)
        m.d.sync += expected.eq(expected_next)
        outstanding = Signal(range(capacity + 1))
        taken = words.o.valid & words.o.ready
        held_next = (taken & end_of_beat) | (beat_held & ~takes(expected))
        ready = Signal()  # a register, as much depends on it
        m.d.comb += [words.o.ready.eq(ready), self.waiting.eq(outstanding != 0)]
        m.d.sync += [
            beat_held.eq(held_next),
            ready.eq(~held_next | takes(expected_next)),
            outstanding.eq(outstanding + Mux(request, burst_words, 0) - taken),
        ]
        with m.If(taken):
            m.d.sync += [lane.eq(lane.rotate_left(1)), word.eq(following), end_of_beat.eq(following == per_beat - 1)]
            for index in range(per_beat):
                with m.If(lane[index]):
                    m.d.sync += beat.word_select(index, arch.data_bits).eq(words.o.payload.data)
        with m.If(self.clear):
            m.d.sync += self.error.eq(0)
        with m.Elif(taken & words.o.payload.error):
            m.d.sync += self.error.eq(1)

        # ---- beats are scales or planes ----
        m.submodules.scale_queue = scale_queue = SyncFIFOBuffered(width=arch.beat_bits, depth=scale_queue_depth(arch))
        tiles_left = Signal(TILE_BITS)
        tile_planes = Signal.like(segment.bits)
        planes_left = Signal(range(TILES_PER_SCALE_BEAT << len(tile_planes)))
        # The tiles of the next scale beat and their planes, counted while the planes before arrive.
        last_group = Signal()
        group_planes = Signal.like(planes_left)
        group_tiles = Mux(tiles_left < TILES_PER_SCALE_BEAT, tiles_left, TILES_PER_SCALE_BEAT)[:3]
        m.d.sync += [
            last_group.eq(tiles_left <= TILES_PER_SCALE_BEAT),
            group_planes.eq(sum((Mux(bit, tile_planes << n, 0) for n, bit in enumerate(group_tiles)), Const(0))),
        ]
        # One more register, for the queue and the row banks are far from each other; for the queue another one.
        is_scales, scale_write = Signal(), Signal()
        scale_beat = Signal.like(beat)
        m.d.sync += [
            self.beat.eq(beat),
            self.plane_write.eq(beat_held & (expected == Expected.PLANES)),
            is_scales.eq(beat_held & (expected == Expected.SCALES)),
            scale_beat.eq(self.beat),
            scale_write.eq(is_scales),
        ]
        with m.If(self.plane_write):
            m.d.sync += self.plane_address.eq(self.plane_address + 1)
        m.d.comb += [
            scale_queue.w_data.eq(scale_beat),
            scale_queue.w_en.eq(scale_write),
            scale_queue.r_en.eq(~self.scales.valid | self.scales.ready),
        ]
        with m.If(scale_queue.r_en):  # in registers, for block RAM answers late
            m.d.sync += [self.scales.payload.eq(scale_queue.r_data), self.scales.valid.eq(scale_queue.r_rdy)]
        # Some cycles old: room for one more than this beat, and no third one comes in four cycles.
        has_room_for_scales = Signal()
        m.d.sync += has_room_for_scales.eq(scale_queue.w_level < scale_queue.depth - 1)
        scales_next = Mux(has_room_for_scales, Expected.SCALES, Expected.NO_ROOM)
        with m.Switch(expected):
            with m.Case(Expected.NO_SEGMENT):
                m.d.comb += shapes.r_en.eq(1)
                with m.If(shapes.r_rdy):
                    m.d.sync += Cat(tiles_left, tile_planes).eq(shapes.r_data)
                    m.d.comb += expected_next.eq(Expected.NO_ROOM)
            with m.Case(Expected.NO_ROOM):
                m.d.comb += expected_next.eq(scales_next)
            with m.Case(Expected.SCALES):
                m.d.comb += scale_taken.eq(beat_held)
                with m.If(scale_taken):
                    m.d.sync += [
                        planes_left.eq(group_planes),
                        tiles_left.eq(Mux(last_group, 0, tiles_left - TILES_PER_SCALE_BEAT)),
                    ]
                    m.d.comb += expected_next.eq(Expected.PLANES)
            with m.Case(Expected.PLANES), m.If(beat_held):
                m.d.sync += planes_left.eq(planes_left - 1)
                with m.If(planes_left == 1):
                    m.d.comb += expected_next.eq(Mux(tiles_left == 0, Expected.NO_SEGMENT, scales_next))

        level = Signal(range(arch.expert_beats + 1))
        m.d.comb += self.beat_ready.eq(level != 0)
        m.d.sync += level.eq(level + self.plane_write - self.beat_pop)
        return m
