"""Scale-accumulate: block dot products become fixed-point sums, one accumulator for each slot and column."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moe_hw.arch import ACC_BITS, TILES_PER_SCALE_BEAT, Arch
from rtl_gen.emit import OF_ITS_OWN, instance
from rtl_gen.row import SUM_BITS
from rtl_gen.types import result_layout, slot_bits

FRACTION = 24
"""Bits that a product, in units of a quarter, is shifted left before the right shift R of ``docs/numerics.md``."""

SHIFT_MAX = 63
SCALE_BITS = 8

TAG_LEAD = 1
"""Cycles that a tag comes before its sums, as it comes from far."""


def tag_layout(arch: Arch) -> data.StructLayout:
    """What accompanies a dot product through the array."""
    results = result_layout(arch)
    return data.StructLayout(
        {
            "result": data.StructLayout({name: field.shape for name, field in results if name != "acc"}),
            "first": 1,  # the accumulator starts from zero
            "complete": 1,  # and is finished with this product
            "shift": 7,  # R of the numerics, less the scale's f
            "scale_index": 2,  # tile within its scale beat
            "scale_pop": 1,  # last use of the scale beat
        }
    )


scale_layout = data.StructLayout({"fraction": 5, "f": 6})
"""``frac`` and ``f`` of a scale, section 2 of ``docs/numerics.md``."""


def scale_parts(scale: Value) -> tuple[Value, Value]:
    """``frac`` and ``f`` of a scale's byte."""
    near, far, last = scale[7] & ~scale[6], scale[6:8].all() & ~scale[5], scale[5:8].all()
    frac = Mux(last, 0, Mux(far, scale[:3] << 2, Mux(near, scale[:4] << 1, scale[:5])))[:5]
    f = Mux(last, scale[:5] + 12, Mux(far, Cat(scale[3:5], 0, 1), Mux(near, Cat(scale[4:6], 1), scale[5:7])))
    return frac, f


class AccumulateColumn(wiring.Component):
    """The accumulators of one column. Emitted once; all members are plain signals.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    dot : In(18, signed), scale : In(scale_layout), shift : In(7)
        A product to accumulate, in stage 1.
    read_slot : In
        Its slot, in stage 3. ``first``, ``forward`` : In(1), in stage 4: start from zero, or from the sum before.
    write : In(1), write_slot : In
        In stage 5: store the sum of stage 6.
    sum : Out(48, signed)
        The sum, in stage 6. Latency 5 cycles; throughput one product a cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "dot": In(signed(SUM_BITS)),
                "scale": In(scale_layout),
                "shift": In(7),
                "read_slot": In(slot_bits(arch)),
                "first": In(1),
                "forward": In(1),
                "write": In(1),
                "write_slot": In(slot_bits(arch)),
                "sum": Out(signed(ACC_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()

        # Stage 1: dot * (32 + frac), by digits of two bits because the multipliers are the array's; the whole shift.
        fraction = self.scale.fraction
        triple = self.dot + (self.dot << 1)

        def times(digit: Value) -> Value:
            return Mux(digit[1], Mux(digit[0], triple, self.dot << 1), Mux(digit[0], self.dot, 0))

        product = Signal(signed(SUM_BITS + 7))
        amount = Signal(range(SHIFT_MAX + 1))
        total = Signal(8)
        m.d.comb += total.eq(self.shift + self.scale.f)
        m.d.sync += [
            product.eq(
                times(fraction[:2]) + (times(fraction[2:4]) << 2) + (Mux(fraction[4], triple, self.dot << 1) << 4)
            ),
            amount.eq(Mux(total > SHIFT_MAX, SHIFT_MAX, total)),
        ]
        # Stages 2 to 4: shift right, coarse then fine, with one more bit below for the rounding.
        coarse = Signal(signed(ACC_BITS + 1))
        fine_amount = Signal(3)
        fine = Signal(signed(ACC_BITS + 1))
        m.d.sync += [
            coarse.eq((product << (FRACTION - 1)) >> Cat(Const(0, 3), amount[3:])),
            fine_amount.eq(amount[:3]),
            fine.eq(coarse >> fine_amount),
        ]
        addend = Signal(signed(ACC_BITS))
        m.d.sync += addend.eq((fine >> 1) + fine[0])

        # Stage 5: add. The memory is read in stage 4 and written in stage 6.
        # What is the same for all columns has a register in each, for they lie all over the array.
        read_slot, first, forward, write_enable, write_slot = (
            Signal.like(value, attrs=OF_ITS_OWN)
            for value in (self.read_slot, self.first, self.forward, self.write, self.write_slot)
        )
        m.d.sync += [
            read_slot.eq(self.read_slot),
            first.eq(self.first),
            forward.eq(self.forward),
            write_enable.eq(self.write),
            write_slot.eq(self.write_slot),
        ]
        m.submodules.memory = memory = Memory(shape=signed(ACC_BITS), depth=self.arch.slots, init=[])
        write = memory.write_port()
        read = memory.read_port(transparent_for=[write])
        start = Mux(first, 0, Mux(forward, self.sum, read.data))
        m.d.sync += self.sum.eq(start + addend)
        m.d.comb += [
            read.addr.eq(read_slot),
            write.en.eq(write_enable),
            write.addr.eq(write_slot),
            write.data.eq(self.sum),
        ]
        return m


class Accumulate(wiring.Component):
    """Scales the array's sums and accumulates them; finished accumulators leave as results.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    sums : In(columns x 18 bits)
        A block's dot products.
    valid : In(1), tag : In(tag_layout(arch))
        What they belong to, ``TAG_LEAD`` cycles before them.
    scales : In(stream of a beat)
        Scale beats in the order of their tiles. A beat must have arrived before its first tile's sums.
    results : Out(stream of result_layout(arch))
        Room is the sequencer's business: at most ``arch.slots`` results may be under way.

    Latency 8 cycles from the sums, throughput one block a cycle; a result in two cycles.

    Attributes
    ----------
    repeated : dict
        Modules to emit once, by Verilog name.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        self.repeated = {"moe_accumulate_column": AccumulateColumn(arch)}
        super().__init__(
            {
                "sums": In(arch.columns * SUM_BITS),
                "valid": In(1),
                "tag": In(tag_layout(arch)),
                "scales": In(stream.Signature(arch.beat_bits)),
                "results": Out(stream.Signature(result_layout(arch))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        column = self.repeated["moe_accumulate_column"]

        # Stage 0 picks the tile's scales; stages 1 to 6 run beside the columns' pipelines.
        stages = 7
        valid = [Signal(name=f"valid_{stage}") for stage in range(stages)]
        tag = [Signal(tag_layout(arch), name=f"tag_{stage}") for stage in range(stages)]
        scale_pop = Signal()  # a register, as a beat's clock enable reaches far
        m.d.sync += [valid[0].eq(self.valid), tag[0].eq(self.tag), scale_pop.eq(self.valid & self.tag.scale_pop)]
        for stage in range(stages - 1):
            m.d.sync += [valid[stage + 1].eq(valid[stage]), tag[stage + 1].eq(tag[stage])]
        sums = Signal.like(self.sums)
        scales = Signal(data.ArrayLayout(scale_layout, arch.columns))
        tile_bits = arch.columns * SCALE_BITS
        assert tile_bits * TILES_PER_SCALE_BEAT == arch.beat_bits
        tile_scales = self.scales.payload.word_select(tag[0].scale_index, tile_bits)
        m.d.sync += sums.eq(self.sums)
        for index in range(arch.columns):
            fraction, f = scale_parts(tile_scales.word_select(index, SCALE_BITS))
            m.d.sync += [scales[index].fraction.eq(fraction), scales[index].f.eq(f)]
        m.d.comb += self.scales.ready.eq(scale_pop)

        forward = Signal()
        m.d.sync += forward.eq(valid[4] & (tag[4].result.slot == tag[3].result.slot))

        width = Shape.cast(result_layout(arch)).width
        # One more than there can be: its last place takes nothing in the cycle in which the first one is freed.
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=width, depth=arch.slots + 1)
        taken = Signal()  # a register, as the result's takers are far away
        result = Signal(result_layout(arch))
        for name, _ in tag_layout(arch)["result"].shape:
            m.d.comb += result[name].eq(tag[6].result[name])
        for index in range(arch.columns):
            ports = column.signature.create(path=(f"column_{index}",))
            m.d.comb += [
                ports.dot.eq(sums.word_select(index, SUM_BITS)),
                ports.scale.eq(scales[index]),
                ports.shift.eq(tag[1].shift),
                ports.read_slot.eq(tag[3].result.slot),
                ports.first.eq(tag[4].first),
                ports.forward.eq(forward),
                ports.write.eq(valid[5]),
                ports.write_slot.eq(tag[5].result.slot),
                result.acc[index].eq(ports.sum),
            ]
            m.submodules[f"column_{index}"] = instance("moe_accumulate_column", column.signature, ports)
        m.d.comb += [
            fifo.w_en.eq(valid[6] & tag[6].complete),
            fifo.w_data.eq(result),
            self.results.valid.eq(fifo.r_rdy & ~taken),
            self.results.payload.eq(fifo.r_data),
            fifo.r_en.eq(taken),
        ]
        m.d.sync += taken.eq(self.results.valid & self.results.ready)
        return m
