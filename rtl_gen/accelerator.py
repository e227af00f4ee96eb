"""The accelerator: every block of ``docs/design.md``, wired up."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from moe_hw.arch import Arch
from moe_hw.registers import COUNTERS, DEVICE_MAGIC, LAYOUT_VERSION
from rtl_gen.axi_slice import AxiSlice
from rtl_gen.bus import AXI4, AXI4Lite, AXI4Read, AXI4Write, connect_half
from rtl_gen.combine import Combine
from rtl_gen.command import Command
from rtl_gen.counters import Counters
from rtl_gen.expert_tables import ExpertTables
from rtl_gen.hidden_writer import HiddenWriter
from rtl_gen.loader import Loader
from rtl_gen.output import Output
from rtl_gen.post import Post
from rtl_gen.read_arbiter import ReadArbiter
from rtl_gen.registers import CSR_ADDR_BITS, Registers
from rtl_gen.requant import Requant
from rtl_gen.route_reader import RouteReader
from rtl_gen.router import Router
from rtl_gen.scheduler import Scheduler
from rtl_gen.sequencer import Activity, Sequencer
from rtl_gen.skid_buffer import SkidBuffer
from rtl_gen.sub_arrays import SubArrays
from rtl_gen.types import Kind
from rtl_gen.vector_buffer import VectorBuffer
from rtl_gen.widen import Widen
from rtl_gen.writer import Writer

COMMAND_READER, LOADER_READER, ROUTES_READER, TABLES_READER, WEIGHT_READER = range(5)


class AcceleratorPorts(wiring.Signature):
    """The members of :class:`Accelerator`."""

    def __init__(self, arch: Arch):
        channels = {}
        if arch.channels > 1:
            channels = {f"m_axi_{channel}": Out(AXI4Read(arch.sub_array)) for channel in range(arch.channels)}
        super().__init__(
            {"s_axil": In(AXI4Lite(CSR_ADDR_BITS)), "m_axi": Out(AXI4(arch)), **channels, "busy": Out(1)}
        )


class Accelerator(wiring.Component):
    """A complete accelerator for MoE layers.

    Latency and throughput: a command takes at least as long as reading its experts' weights at a bus word a cycle;
    ``moe_hw.registers.COUNTERS`` tells where its cycles went.

    Parameters
    ----------
    arch : Arch
        Its sizes.

    Members
    -------
    s_axil : In(AXI4Lite(CSR_ADDR_BITS))
        Control and status registers.
    m_axi : Out(AXI4(arch))
        Device memory.
    m_axi_0 … : Out(AXI4Read(arch.sub_array))
        With several channels: each channel of device memory, with addresses within it.
    busy : Out(1)
        Commands are pending or under way.

    Attributes
    ----------
    repeated : dict
        Modules to emit once, by Verilog name.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        self._sub_arrays = SubArrays(arch)
        self.repeated = self._sub_arrays.repeated
        super().__init__(AcceleratorPorts(arch))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        m.submodules.registers = registers = Registers()
        m.submodules.command = command = Command(arch)
        m.submodules.reads = reads = ReadArbiter(arch, 5 if arch.channels == 1 else 4)
        m.submodules.loader = loader = Loader(arch)
        m.submodules.vector_buffer = vector_buffer = VectorBuffer(arch)
        m.submodules.scheduler = scheduler = Scheduler(arch)
        m.submodules.sequencer = sequencer = Sequencer(arch)
        m.submodules.sub_arrays = sub_arrays = self._sub_arrays
        m.submodules.router = router = Router(arch)
        m.submodules.tables = tables = ExpertTables(arch)
        m.submodules.route_reader = route_reader = RouteReader(arch)
        m.submodules.post = post = Post(arch)
        m.submodules.requant = requant = Requant(arch)
        m.submodules.hidden_writer = hidden_writer = HiddenWriter(arch)
        m.submodules.combine = combine = Combine(arch)
        m.submodules.output = output = Output(arch)
        m.submodules.widen = widen = Widen(arch)
        m.submodules.writer = writer = Writer(arch)
        m.submodules.counters = counters = Counters(1 + arch.channels)

        # ---- host ----
        connect(m, flipped(self.s_axil), registers.bus)
        m.d.comb += [
            registers.magic.eq(DEVICE_MAGIC),
            registers.version.eq(LAYOUT_VERSION),
            Cat(registers.config_hash_low, registers.config_hash_high).eq(arch.hash),
            registers.head.eq(command.head),
            registers.status.eq(command.status),
            registers.state.eq(command.state),
            command.ring_base.eq(registers.ring_base),
            command.ring_mask.eq(registers.ring_mask),
            command.tail.eq(registers.tail),
            self.busy.eq(command.head != registers.tail),
        ]

        # ---- memory ----
        for index, reader in (
            (COMMAND_READER, command),
            (LOADER_READER, loader),
            (ROUTES_READER, route_reader),
            (TABLES_READER, tables),
        ):
            connect_reader(m, reads, index, reader.bursts, reader.words)
        connect_sliced(m, self.m_axi, reads, AXI4Read(arch), "read_slice")
        connect_sliced(m, self.m_axi, writer, AXI4Write(arch), "write_slice")
        # One channel has one port for everything; of several, each has one more for its share of the weights.
        arbiters, masters = [reads], [self.m_axi]
        if arch.channels == 1:
            connect_reader(m, reads, WEIGHT_READER, sub_arrays.bursts_0, sub_arrays.words_0)
        else:
            for channel in range(arch.channels):
                m.submodules[f"reads_{channel}"] = port = ReadArbiter(arch.sub_array, 1)
                master = getattr(self, f"m_axi_{channel}")
                bursts, words = getattr(sub_arrays, f"bursts_{channel}"), getattr(sub_arrays, f"words_{channel}")
                connect_reader(m, port, 0, bursts, words, f"words_of_channel_{channel}")
                connect_sliced(m, master, port, AXI4Read(arch.sub_array), f"read_slice_{channel}")
                arbiters.append(port)
                masters.append(master)

        # ---- one layer and one start for all ----
        for block in (
            scheduler, loader, sequencer, router, tables, route_reader, post, hidden_writer, combine, output
        ):  # fmt: skip
            m.d.comb += block.layer.eq(command.layer)
        starts = (scheduler.start, loader.clear, sub_arrays.clear, hidden_writer.restart, combine.clear, output.restart)
        for start in (*starts, writer.clear, tables.start, route_reader.start):
            m.d.comb += start.eq(command.compute)

        # A cycle late: nobody asks in the cycle in which a range is handed over.
        written = Signal()
        m.d.sync += written.eq(~writer.busy)

        # ---- jobs: their weights and their vectors ----
        # A segment goes to the streamers and, for the width of its codes, to the sequencer.
        m.submodules.segments = buffer = SkidBuffer(scheduler.segments.payload.shape())
        connect(m, scheduler.segments, buffer.i)
        segments = buffer.o
        m.d.comb += [
            sub_arrays.segments.payload.eq(segments.payload),
            sequencer.bits.payload.eq(segments.payload.bits),
            sub_arrays.segments.valid.eq(segments.valid & sequencer.bits.ready),
            sequencer.bits.valid.eq(segments.valid & sub_arrays.segments.ready),
            segments.ready.eq(sub_arrays.segments.ready & sequencer.bits.ready),
        ]
        connect(m, scheduler.fetches, loader.fetches)
        m.submodules.jobs = jobs = SkidBuffer(scheduler.jobs.payload.shape())
        connect(m, scheduler.jobs, jobs.i)
        connect(m, jobs.o, sequencer.jobs)
        connect(m, sequencer.slot, scheduler.slot)
        connect(m, sequencer.exponents, vector_buffer.read)
        m.d.comb += [
            sub_arrays.base.eq(command.layer_address),
            scheduler.input_address.eq(command.input_address),
            scheduler.hidden_address.eq(command.hidden_address),
            scheduler.loaded.eq(vector_buffer.loaded),
            scheduler.released.eq(sequencer.released),
            scheduler.job_done.eq(Cat(router.job_done, hidden_writer.job_done, combine.job_done)),
            scheduler.written.eq(written),
            scheduler.stored.eq(output.stored),
            command.computed.eq(scheduler.done & written),
            vector_buffer.valid.eq(loader.valid),
            vector_buffer.line.eq(loader.line),
            sequencer.beat_ready.eq(sub_arrays.beat_ready),
            sequencer.result_taken.eq(sub_arrays.results.valid & sub_arrays.results.ready),
        ]

        # ---- the array ----
        m.d.comb += [
            sub_arrays.beat_pop.eq(sequencer.beat_pop),
            sub_arrays.command.eq(sequencer.command),
            sub_arrays.tag_valid.eq(sequencer.tag_valid),
            sub_arrays.tag.eq(sequencer.tag),
            sub_arrays.x_write.eq(vector_buffer.x_write),
            sub_arrays.x_address.eq(vector_buffer.x_address),
            sub_arrays.x.eq(vector_buffer.x),
        ]

        # ---- results go where their phase says ----
        results = sub_arrays.results
        for kind, block in ((Kind.ROUTER, router), (Kind.UP, post), (Kind.DOWN, combine)):
            mine = results.payload.kind == kind
            m.d.comb += [block.results.payload.eq(results.payload), block.results.valid.eq(results.valid & mine)]
            with m.If(mine):
                m.d.comb += results.ready.eq(block.results.ready)
        with m.If(command.layer.given_routes):
            connect_stream(m, route_reader.routes, scheduler.routes)
        with m.Else():
            connect_stream(m, router.routes, scheduler.routes)
        m.d.comb += [
            tables.address.eq(command.layer_address),
            tables.expert.eq(scheduler.table_expert),
            scheduler.table_loaded.eq(tables.loaded),
            scheduler.table_entry.eq(tables.entry),
            tables.corrected.eq(router.expert),
            router.correction.eq(tables.correction),
            router.loaded.eq(tables.loaded),
        ]
        connect(m, post.values, requant.values)
        connect(m, requant.blocks, hidden_writer.blocks)
        connect(m, output.read, combine.read)
        m.d.comb += [
            hidden_writer.address.eq(command.hidden_address),
            output.store.eq(scheduler.store),
            output.address.eq(command.output_address),
        ]

        m.d.comb += combine.hold.eq(output.clearing)

        # ---- one writer: hidden activations, then outputs, then the records; never two of them at a time ----
        with m.If(command.writing_completion):
            connect_stream(m, command.completion, widen.words)
        with m.Else():
            connect_stream(m, scheduler.routing, widen.words)
        m.d.comb += [
            widen.pad.eq(command.writing_routing & scheduler.routing_idle),
            widen.clear.eq(~command.writing_routing & ~command.writing_completion),
        ]
        with m.If(command.writing_routing | command.writing_completion):
            connect_stream(m, widen.values, writer.values)
        with m.Elif(output.values.valid):
            connect_stream(m, output.values, writer.values)
        with m.Else():
            connect_stream(m, hidden_writer.values, writer.values)
        with m.If(command.ranges.valid):
            connect_stream(m, command.ranges, writer.ranges)
        with m.Elif(output.ranges.valid):
            connect_stream(m, output.ranges, writer.ranges)
        with m.Else():
            connect_stream(m, hidden_writer.ranges, writer.ranges)
        m.d.comb += [
            scheduler.read.eq(command.read_routing),
            command.written.eq(written),
            command.vector_error.eq(loader.error),
            command.weight_error.eq(sub_arrays.error),
            command.write_error.eq(writer.error),
            command.table_error.eq(tables.error),
            command.routes_error.eq(route_reader.error),
            route_reader.address.eq(command.routes_address),
            route_reader.entries.eq(command.entries),
            command.overflow.eq(combine.overflow),
            command.weights_outstanding.eq(sub_arrays.waiting),
            command.loading.eq(scheduler.loading),
            command.router_busy.eq(router.busy | route_reader.busy),
            command.storing_output.eq(scheduler.storing),
        ]

        # ---- counters ----
        activity = sequencer.activity
        no_job = command.computing & (activity == Activity.NO_JOB)
        loading = scheduler.loading & ~scheduler.storing
        read_words = [master.rvalid & master.rready for master in masters]
        events = {
            "cycles": Const(1),
            "setup": command.setting_up,
            "busy": command.computing & (activity == Activity.BUSY),
            "wait_weights": command.computing & (activity == Activity.WAIT_WEIGHTS),
            "wait_vectors": no_job & loading,
            "wait_results": command.computing & (activity == Activity.WAIT_RESULTS),
            "wait_jobs": no_job & ~loading & ~scheduler.storing,
            "output": command.storing | (no_job & scheduler.storing),
            "read_words": sum(read_words, start=Const(0, 1)),
            "write_words": self.m_axi.wvalid & self.m_axi.wready,
            "read_idle": ~Cat(port.idle for port in arbiters).all() & ~Cat(read_words).any(),
            "routing": command.router_busy,
        }
        for name, event in events.items():
            m.d.comb += getattr(counters, f"{name}_event").eq(event)
        m.d.comb += [
            counters.clear.eq(command.starting),
            counters.enable.eq(command.setting_up | command.computing | command.storing),
            command.counters.eq(Cat(*(getattr(counters, word.name) for word in COUNTERS))),
            command.experts_used.eq(scheduler.experts_used),
        ]
        return m


def connect_sliced(
    m: Module, master: wiring.PureInterface, block: wiring.Component, half: wiring.Signature, name: str
) -> None:
    """Connect half of a bus through a register slice, the submodule ``name``."""
    m.submodules[name] = axi_slice = AxiSlice(half)
    connect_half(m, axi_slice.master, block, half)
    connect_half(m, master, axi_slice.slave, half)


def connect_reader(
    m: Module,
    arbiter: ReadArbiter,
    index: int,
    bursts: wiring.PureInterface,
    words: wiring.PureInterface,
    name: str | None = None,
) -> None:
    """Connect a reader of memory; its words stop in a register, the submodule ``name``, beside it."""
    m.submodules[name or f"words_{index}"] = buffer = SkidBuffer(words.payload.shape())
    connect(m, bursts, getattr(arbiter, f"bursts_{index}"))
    connect(m, getattr(arbiter, f"words_{index}"), buffer.i)
    connect(m, buffer.o, words)


def connect_stream(m: Module, source: object, sink: object) -> None:
    """Connect two streams under the condition that holds here."""
    m.d.comb += [sink.payload.eq(source.payload), sink.valid.eq(source.valid), source.ready.eq(sink.ready)]
