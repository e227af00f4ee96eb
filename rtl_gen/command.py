"""The command processor: fetches commands and layer descriptors, checks them, and leads a batch through its steps."""

from __future__ import annotations

from collections.abc import Callable

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moe_hw.arch import ROWS, SEGMENT_ALIGN, Arch
from moe_hw.registers import COMMAND, COMMAND_MAGIC, COMPLETION, COUNTERS, LAYER, LAYER_MAGIC, Status, Waiting
from rtl_gen.bus import WORD_COUNT_BITS, Bursts, burst_layout, word_layout
from rtl_gen.types import address_bits, layer_layout


class Command(wiring.Component):
    """Executes the commands of the ring in order, one at a time.

    An error found before the batch starts skips to the completion record; one found later is reported there when
    the batch has run to its end. A command without its magic word has no completion record: its address is not to be trusted.

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
    prepare : Out(1), input_address : Out
        Pulse: load the inputs from there, clear the combine buffer and the errors.
    prepared : In(1)
        Both are done.
    compute : Out(1), computed : In(1)
        Pulse: start the scheduler; it is done.
    read_output, read_routing, write : Out(1), write_address, write_count : Out
        Pulses: stream the outputs or the routing record, and write ``write_count`` words of it.
    writing_completion : Out(1), completion : Out(stream of 32 bits)
        The writer takes its words from here.
    write_busy : In(1)
    counters : In(32 bits x counters), experts_used : In(32)
        For the completion record.
    starting : Out(1)
        Pulse: a command begins.
    setting_up, computing, storing : Out(1)
        Which part of a command this cycle belongs to; none while idle and while the completion is written.
    input_error, weight_error, write_error, overflow : In(1)
    weights_outstanding, router_busy : In(1)
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
                "prepare": Out(1),
                "input_address": Out(address_bits(arch)),
                "prepared": In(1),
                "compute": Out(1),
                "computed": In(1),
                "read_output": Out(1),
                "read_routing": Out(1),
                "write": Out(1),
                "write_address": Out(address_bits(arch)),
                "write_count": Out(WORD_COUNT_BITS),
                "write_busy": In(1),
                "writing_completion": Out(1),
                "completion": Out(stream.Signature(32)),
                "counters": In(32 * len(COUNTERS)),
                "experts_used": In(32),
                "starting": Out(1),
                "setting_up": Out(1),
                "computing": Out(1),
                "storing": Out(1),
                "input_error": In(1),
                "weight_error": In(1),
                "write_error": In(1),
                "overflow": In(1),
                "weights_outstanding": In(1),
                "router_busy": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        arch = self.arch
        layer = self.layer

        # ---- records shift in from the top, so that word 0 ends at the bottom ----
        record = Signal(32 * LAYER.size)
        command = {word.name: Signal(32, name=f"command_{word.name}") for word in COMMAND.words}
        read_error = Signal()
        received = Signal(range(LAYER.size_bytes * 8 // arch.data_bits + 1))
        m.submodules.cutter = cutter = Bursts(arch)
        wiring.connect(m, cutter.bursts, wiring.flipped(self.bursts))
        m.d.comb += self.words.ready.eq(1)
        with m.If(self.words.valid):
            m.d.sync += [
                record.eq(Cat(record, self.words.payload.data)[arch.data_bits :]),
                received.eq(received + 1),
                read_error.eq(read_error | self.words.payload.error),
            ]

        fields = layer_layout()
        for name, position in LAYER.index.items():
            if name != "magic":
                width = len(Signal(fields[name].shape))
                m.d.comb += layer[name].eq(record[32 * position : 32 * position + width])
        m.d.comb += [
            layer.tokens.eq(command["tokens"]),
            self.layer_address.eq(command["layer"]),
            self.input_address.eq(command["input"]),
        ]
        command_bits = record[-32 * COMMAND.size :]

        # ---- checks, on products registered a cycle before ----
        groups = Signal(16)
        widest = Mux(layer.inter_blocks > layer.shared_blocks, layer.inter_blocks, layer.shared_blocks)
        token_blocks = Signal(28)
        output_blocks = Signal(28)
        logit_words = Signal(28)
        m.d.comb += groups.eq((layer.experts + layer.shared_gate + arch.columns - 1) >> ceil_log2(arch.columns))
        m.d.sync += [
            token_blocks.eq(layer.tokens * ((layer.hidden_blocks << 1) + widest)),
            output_blocks.eq(layer.tokens * layer.hidden_blocks),
            logit_words.eq(layer.tokens * groups),
        ]
        shared_ok = Mux(layer.shared_blocks == 0, ~layer.shared_gate, layer.shared_passes != 0)
        sizes = (layer.hidden_blocks, layer.inter_blocks, layer.experts, layer.passes, layer.router_passes)
        shape_ok = shared_ok
        for size in sizes:
            shape_ok = shape_ok & (size != 0)
        entries = layer.top_k + (layer.shared_blocks != 0)

        status = Signal(Status)
        checks = (
            (read_error, Status.LAYER_READ_ERROR),
            (record.word_select(LAYER.index["magic"], 32) != LAYER_MAGIC, Status.BAD_LAYER),
            ((layer.tokens == 0) | (command["tokens"] > arch.max_tokens), Status.BAD_TOKENS),
            (~shape_ok, Status.BAD_SHAPE),
            (layer.experts > arch.max_experts, Status.TOO_MANY_EXPERTS),
            (
                (layer.top_k == 0) | (layer.top_k > arch.max_top_k) | (layer.top_k > layer.experts),
                Status.BAD_TOP_K,
            ),
            (token_blocks > arch.token_blocks, Status.TOKEN_BUFFER_FULL),
            (output_blocks > arch.combine_elements // ROWS, Status.COMBINE_BUFFER_FULL),
            (logit_words > arch.logit_words, Status.LOGIT_BUFFER_FULL),
        )
        final = Signal(Status)
        m.d.comb += final.eq(status)
        later = (
            (self.input_error, Status.INPUT_READ_ERROR),
            (self.weight_error, Status.WEIGHT_READ_ERROR),
            (self.write_error, Status.WRITE_ERROR),
            (self.overflow, Status.OVERFLOW),
        )

        def report(code: Status) -> None:
            m.d.comb += final.eq(code)

        with m.If(status == Status.OK):
            _first(m, later, report)

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
                cutter.ranges.valid.eq(1),
                cutter.ranges.payload.address.eq(address),
                cutter.ranges.payload.words.eq(size_bytes * 8 // arch.data_bits),
            ]
            m.d.sync += [received.eq(0), read_error.eq(0)]

        def arrived(size_bytes: int) -> Value:
            return received == size_bytes * 8 // arch.data_bits

        def store(address: Value, count: Value) -> None:
            m.d.comb += [self.write.eq(1), self.write_address.eq(address), self.write_count.eq(count)]

        waiting = {flag: Signal(name=f"waiting_{flag.name.lower()}") for flag in Waiting if flag.name}
        for flag, signal in waiting.items():
            m.d.comb += self.state[int(flag).bit_length() - 1].eq(signal)
        m.d.comb += [
            waiting[Waiting.WEIGHT_READ].eq(self.weights_outstanding),
            waiting[Waiting.ROUTING].eq(self.router_busy),
        ]

        with m.FSM():
            with m.State("idle"), m.If(self.head != self.tail):
                m.d.comb += self.starting.eq(1)
                m.d.sync += [status.eq(Status.OK), completion_index.eq(0)]
                m.next = "command"
            with m.State("command"):
                m.d.comb += self.setting_up.eq(1)
                fetch(self.ring_base + (self.head & self.ring_mask), COMMAND.size_bytes)
                with m.If(cutter.ranges.ready):
                    m.next = "command wait"
            with m.State("command wait"):
                m.d.comb += [self.setting_up.eq(1), waiting[Waiting.COMMAND_FETCH].eq(1)]
                for name, position in COMMAND.index.items():
                    m.d.sync += command[name].eq(command_bits.word_select(position, 32))
                with m.If(arrived(COMMAND.size_bytes)):
                    m.next = "command check"
            with m.State("command check"):
                m.d.comb += self.setting_up.eq(1)
                with m.If(read_error):
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
                with m.If(cutter.ranges.ready):
                    m.next = "layer wait"
            with m.State("layer wait"):
                m.d.comb += [self.setting_up.eq(1), waiting[Waiting.LAYER_FETCH].eq(1)]
                with m.If(arrived(LAYER.size_bytes)):
                    m.next = "layer settle"
            with m.State("layer settle"):
                m.d.comb += self.setting_up.eq(1)
                m.next = "layer check"
            with m.State("layer check"):
                m.d.comb += [self.setting_up.eq(1), self.prepare.eq(1)]
                m.next = "load"

                def refuse(code: Status) -> None:
                    m.d.comb += self.prepare.eq(0)
                    m.d.sync += status.eq(code)
                    m.next = "completion"

                _first(m, checks, refuse)
            with m.State("load"):
                m.d.comb += [self.setting_up.eq(1), waiting[Waiting.INPUT_READ].eq(1)]
                with m.If(self.prepared):
                    m.d.comb += self.compute.eq(1)
                    m.next = "run"
            with m.State("run"):
                m.d.comb += [self.computing.eq(1), waiting[Waiting.COMPUTE].eq(1)]
                with m.If(self.computed):
                    m.next = "output"
            with m.State("output"):
                m.d.comb += [self.storing.eq(1), self.read_output.eq(1)]
                store(command["output"], output_blocks << ceil_log2(ROWS))
                m.next = "output wait"
            with m.State("output wait"):
                m.d.comb += [self.storing.eq(1), waiting[Waiting.OUTPUT_WRITE].eq(1)]
                with m.If(~self.write_busy):
                    m.next = "routing"
            with m.State("routing"):
                m.d.comb += [self.storing.eq(1), self.read_routing.eq(1)]
                store(command["routing"], (layer.tokens * entries) << 1)
                m.next = "routing wait"
            with m.State("routing wait"):
                m.d.comb += [self.storing.eq(1), waiting[Waiting.ROUTING_WRITE].eq(1)]
                with m.If(~self.write_busy):
                    m.next = "completion"
            with m.State("completion"):
                store(command["completion"], Const(COMPLETION.size))
                m.d.comb += self.writing_completion.eq(1)
                m.next = "completion wait"
            with m.State("completion wait"):
                m.d.comb += [
                    self.writing_completion.eq(1),
                    self.completion.valid.eq(1),
                    waiting[Waiting.COMPLETION_WRITE].eq(1),
                ]
                with m.If(~self.write_busy):
                    m.next = "retire"
            with m.State("retire"):
                m.d.sync += [self.status.eq(final), self.head.eq(self.head + 1)]
                m.next = "idle"
        assert COMMAND.size_bytes == SEGMENT_ALIGN
        return m


def _first(m: Module, cases: tuple[tuple[Value, Status], ...], act: Callable[[Status], None]) -> None:
    """``act(value)`` for the first case whose condition holds."""
    with m.If(cases[0][0]):
        act(cases[0][1])
    for condition, value in cases[1:]:
        with m.Elif(condition):
            act(value)
