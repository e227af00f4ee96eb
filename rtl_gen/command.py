"""The command processor: fetches commands and layer descriptors, checks them, and leads a batch through its steps."""

from __future__ import annotations

from itertools import pairwise

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from moe_hw.arch import SEGMENT_ALIGN, Arch
from moe_hw.registers import COMMAND, COMMAND_MAGIC, COMPLETION, COUNTERS, LAYER, Status, Waiting
from rtl_gen.bus import burst_layout, range_layout, word_layout
from rtl_gen.layer_check import LayerCheck
from rtl_gen.record_reader import RecordReader
from rtl_gen.types import CUT_WORDS, address_bits, layer_layout

assert COMMAND.size_bytes == SEGMENT_ALIGN, "commands are numbered by their addresses"


class Command(wiring.Component):
    """Executes the commands of the ring in order, one at a time.

    An error found before the batch starts skips to the completion record; one found later is reported there when
    the batch has run to its end. A command that could not be read, or without its magic word, has no completion
    record: the address is not to be trusted. Its status CSR and ``head`` tell.

    Latency: at most five cycles from the end of a step to the start of the next; throughput: a command at a time.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    ring_base, ring_mask, tail : In(32), head, status, state : Out(32)
        CSRs.
    bursts : Out(stream of burst_layout(arch)), words : In(stream of word_layout(arch))
        Memory.
    layer : Out(layer_layout()), layer_address : Out
        The layer of the batch at hand and its descriptor's address.
    input_address, hidden_address, output_address, routes_address : Out
        Where the batch's inputs, hidden activations, outputs and given routes lie.
    entries : Out
        Entries of the batch's routing record; as long as the layer is stable.
    compute : Out(1), computed : In(1)
        Pulse: start the scheduler and forget errors; all outputs are written.
    read_routing : Out(1)
        Pulse: stream the routing record.
    ranges : Out(stream of range_layout(arch)), written : In(1)
        Where the writer puts the routing and completion records; it has nothing to do.
    writing_routing : Out(1)
        The writer takes its words from the routing record.
    writing_completion : Out(1), completion : Out(stream of 32 bits)
        The writer takes its words from here.
    counters : In(32 bits x counters), experts_used : In(32)
        For the completion record.
    starting : Out(1)
        Pulse: a command begins.
    setting_up, computing, storing : Out(1)
        Which part of a command this cycle belongs to; none while idle and while the completion is written.
    vector_error, weight_error, write_error, routes_error, table_error, overflow : In(1)
    weights_outstanding, loading, router_busy, storing_output : In(1)
        For the ``state`` CSR.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "ring_base": In(32),
                "ring_mask": In(32),
                "tail": In(32),
                "head": Out(32),
                "status": Out(32),
                "state": Out(32),
                "bursts": Out(stream.Signature(burst_layout(arch))),
                "words": In(stream.Signature(word_layout(arch))),
                "layer": Out(layer_layout()),
                "layer_address": Out(address_bits(arch)),
                "input_address": Out(address_bits(arch)),
                "hidden_address": Out(address_bits(arch)),
                "output_address": Out(address_bits(arch)),
                "routes_address": Out(address_bits(arch)),
                "entries": Out(bits_for(arch.queue_entries)),
                "compute": Out(1),
                "computed": In(1),
                "read_routing": Out(1),
                "ranges": Out(stream.Signature(range_layout(arch))),
                "written": In(1),
                "writing_routing": Out(1),
                "writing_completion": Out(1),
                "completion": Out(stream.Signature(32)),
                "counters": In(32 * len(COUNTERS)),
                "experts_used": In(32),
                "starting": Out(1),
                "setting_up": Out(1),
                "computing": Out(1),
                "storing": Out(1),
                "vector_error": In(1),
                "weight_error": In(1),
                "write_error": In(1),
                "routes_error": In(1),
                "table_error": In(1),
                "overflow": In(1),
                "weights_outstanding": In(1),
                "loading": In(1),
                "router_busy": In(1),
                "storing_output": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer

        # ---- what was read ----
        m.submodules.reader = reader = RecordReader(arch)
        wiring.connect(m, reader.bursts, wiring.flipped(self.bursts))
        wiring.connect(m, wiring.flipped(self.words), reader.words)
        command = {word.name: Signal(32, name=f"command_{word.name}") for word in COMMAND.words}
        fields = layer_layout()
        for name, position in LAYER.index.items():
            if name != "magic":
                width = len(Signal(fields[name].shape))
                m.d.comb += layer[name].eq(reader.record[32 * position : 32 * position + width])
        m.d.comb += [layer[name].eq(command[name]) for name in CUT_WORDS]
        for name in ("layer", "input", "hidden", "output", "routes"):
            m.d.comb += getattr(self, f"{name}_address").eq(command[name])
        m.submodules.check = check = LayerCheck(arch)
        m.d.comb += [
            check.layer.eq(layer),
            check.magic.eq(reader.record.word_select(LAYER.index["magic"], 32)),
            check.tokens.eq(command["tokens"]),
            check.slots.eq(command["slots"]),
            check.chunk_blocks.eq(command["chunk_blocks"]),
        ]
        checked = Signal(Status)  # a register: every block waits for the verdict
        m.d.sync += checked.eq(check.status)
        per_token = Signal(range(arch.max_top_k + 2))
        m.d.sync += [
            per_token.eq(layer.top_k + (layer.shared_blocks != 0)),
            self.entries.eq(layer.tokens * per_token),
        ]

        # ---- the status: what the checks found, else what happened later ----
        status = Signal(Status)
        final = Signal(Status)
        with m.If(status != Status.OK):
            m.d.comb += final.eq(status)
        with m.Elif(self.table_error):
            m.d.comb += final.eq(Status.LAYER_READ_ERROR)
        with m.Elif(self.vector_error):
            m.d.comb += final.eq(Status.VECTOR_READ_ERROR)
        with m.Elif(self.routes_error):
            m.d.comb += final.eq(Status.ROUTES_READ_ERROR)
        with m.Elif(self.weight_error):
            m.d.comb += final.eq(Status.WEIGHT_READ_ERROR)
        with m.Elif(self.write_error):
            m.d.comb += final.eq(Status.WRITE_ERROR)
        with m.Elif(self.overflow):
            m.d.comb += final.eq(Status.OVERFLOW)

        # ---- the completion record ----
        completion_index = Signal(range(COMPLETION.size))
        completion_words = Cat(final, Const(0, 32 - len(final)), self.head, self.counters, self.experts_used)
        completion_words = Cat(completion_words, Const(0, 32 * COMPLETION.size - len(completion_words)))
        m.d.comb += self.completion.payload.eq(completion_words.word_select(completion_index, 32))
        with m.If(self.completion.valid & self.completion.ready):
            m.d.sync += completion_index.eq(completion_index + 1)

        # ---- the steps of a command ----
        def fetch(address: Value, size_bytes: int) -> None:
            m.d.comb += [
                reader.ranges.valid.eq(1),
                reader.ranges.payload.address.eq(address),
                reader.ranges.payload.words.eq(size_bytes * 8 // arch.data_bits),
            ]

        def store(address: Value, words: Value) -> None:
            m.d.comb += [
                self.ranges.valid.eq(1),
                self.ranges.payload.address.eq(address),
                self.ranges.payload.words.eq((words + arch.data_bits // 32 - 1) >> exact_log2(arch.data_bits // 32)),
            ]

        waiting = {flag: Signal(name=f"waiting_{flag.name.lower()}") for flag in Waiting if flag.name}
        for flag, signal in waiting.items():
            m.d.comb += self.state[int(flag).bit_length() - 1].eq(signal)
        m.d.comb += [
            waiting[Waiting.WEIGHT_READ].eq(self.weights_outstanding),
            waiting[Waiting.VECTOR_READ].eq(self.loading),
            waiting[Waiting.ROUTING].eq(self.router_busy),
            waiting[Waiting.OUTPUT_WRITE].eq(self.storing_output),
        ]

        with m.FSM():
            with m.State("idle"), m.If(self.head != self.tail):
                m.d.comb += self.starting.eq(1)
                m.d.sync += [status.eq(Status.OK), completion_index.eq(0)]
                m.next = "command"
            with m.State("command"):
                m.d.comb += self.setting_up.eq(1)
                fetch(self.ring_base + (self.head & self.ring_mask), COMMAND.size_bytes)
                with m.If(reader.ranges.ready):
                    m.next = "command wait"
            with m.State("command wait"):
                m.d.comb += [self.setting_up.eq(1), waiting[Waiting.COMMAND_FETCH].eq(1)]
                for name, position in COMMAND.index.items():
                    m.d.sync += command[name].eq(reader.record[-32 * COMMAND.size :].word_select(position, 32))
                with m.If(reader.complete):
                    m.next = "command check"
            with m.State("command check"):
                m.d.comb += self.setting_up.eq(1)
                with m.If(reader.error):
                    m.d.sync += status.eq(Status.COMMAND_READ_ERROR)
                    m.next = "retire"
                with m.Elif(command["magic"] != COMMAND_MAGIC):
                    m.d.sync += status.eq(Status.BAD_COMMAND)
                    m.next = "retire"
                with m.Else():
                    m.next = "layer"
            with m.State("layer"):
                m.d.comb += self.setting_up.eq(1)
                fetch(self.layer_address, LAYER.size_bytes)
                with m.If(reader.ranges.ready):
                    m.next = "layer wait"
            with m.State("layer wait"):
                m.d.comb += [self.setting_up.eq(1), waiting[Waiting.LAYER_FETCH].eq(1)]
                with m.If(reader.complete):
                    m.next = "layer sizes"
            # As many cycles as the check takes, and one for its verdict.
            for state, following in pairwise(
                ("layer sizes", "layer lengths", "layer products", "layer judge", "layer check")
            ):
                with m.State(state):
                    m.d.comb += self.setting_up.eq(1)
                    m.next = following
            with m.State("layer check"):
                m.d.comb += self.setting_up.eq(1)
                m.next = "completion"
                with m.If(reader.error):
                    m.d.sync += status.eq(Status.LAYER_READ_ERROR)
                with m.Elif(checked != Status.OK):
                    m.d.sync += status.eq(checked)
                with m.Else():
                    m.d.comb += self.compute.eq(1)
                    m.next = "run"
            with m.State("run"):
                m.d.comb += [self.computing.eq(1), waiting[Waiting.COMPUTE].eq(1)]
                with m.If(self.computed):
                    m.next = "routing"
            with m.State("routing"):
                m.d.comb += self.storing.eq(1)
                store(command["routing"], self.entries << 1)
                with m.If(self.ranges.ready):
                    m.d.comb += self.read_routing.eq(1)
                    m.next = "routing wait"
            with m.State("routing wait"):
                m.d.comb += [self.storing.eq(1), self.writing_routing.eq(1), waiting[Waiting.ROUTING_WRITE].eq(1)]
                with m.If(self.written):
                    m.next = "completion"
            with m.State("completion"):
                store(command["completion"], Const(COMPLETION.size))
                with m.If(self.ranges.ready):
                    m.next = "completion wait"
            with m.State("completion wait"):
                m.d.comb += [
                    self.writing_completion.eq(1),
                    self.completion.valid.eq(1),
                    waiting[Waiting.COMPLETION_WRITE].eq(1),
                ]
                with m.If(self.written):
                    m.next = "retire"
            with m.State("retire"):
                m.d.sync += [self.status.eq(final), self.head.eq(self.head + 1)]
                m.next = "idle"
        return m
