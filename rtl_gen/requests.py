"""Does the host's requests, each once, and answers them."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from moe_hw.arch import Arch
from moe_hw.bridge import (
    GREETING,
    HEADER,
    LARGEST_COUNT,
    RESET_CYCLES,
    TIMEOUT_CYCLES,
    VERSION,
    WINDOW,
    Opcode,
    Status,
    largest_count,
)
from rtl_gen.frame_queue import LONGEST
from rtl_gen.framer import CONTENT
from rtl_gen.registers import CSR_ADDR_BITS

HEADER_LAYOUT = data.StructLayout({"sequence": 8, "opcode": 8, "count": 16, "address": 32})
"""``moe_hw.bridge.HEADER`` as it comes in: lowest byte first."""

KEPT_BITS = 3
"""Bits of a status that is kept: ``MISSING`` and ``NO_SESSION`` are not."""


class Requests(wiring.Component):
    """The requests of ``docs/bridge.md``: what each means, the sequence numbers, and the bound on every wait.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    frames : In(stream of a number of bytes), bytes : In(stream of 8 bits)
        As of ``FrameQueue``.
    answers : Out(stream of CONTENT), room : In(1)
        The content of answers; there is room for a whole one.
    address : Out(32), count : Out, value : Out(32)
        Of the access.
    memory_start : Out(1), memory_busy : In(1), memory_response : In(2), memory_abandon : Out(1), write : Out(1)
    written : Out(stream of 8 bits), found : In(stream of 8 bits)
        As of ``MemoryAccess``.
    csr_start : Out(1), csr_busy : In(1), csr_response : In(2), csr_found : In(32)
        As of ``CsrAccess``; ``write`` is of both.
    reset : Out(1)
        Of the accelerator.

    Latency: 15 cycles from a frame to the start of its access; throughput: a byte a cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__(
            {
                "frames": In(stream.Signature(range(LONGEST + 1))),
                "bytes": In(stream.Signature(8)),
                "answers": Out(stream.Signature(CONTENT)),
                "room": In(1),
                "address": Out(32),
                "count": Out(range(LARGEST_COUNT + 1)),
                "value": Out(32),
                "write": Out(1),
                "memory_start": Out(1),
                "memory_busy": In(1),
                "memory_response": In(2),
                "memory_abandon": Out(1),
                "written": Out(stream.Signature(8)),
                "found": In(stream.Signature(8)),
                "csr_start": Out(1),
                "csr_busy": In(1),
                "csr_response": In(2),
                "csr_found": In(32),
                "reset": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        header = Signal(HEADER_LAYOUT)
        left = Signal.like(self.frames.payload)  # bytes of the frame that have not been taken
        taken = self.bytes.valid & self.bytes.ready
        with m.If(taken):
            m.d.sync += left.eq(left - 1)
        hello = header.opcode == Opcode.HELLO
        writes = header.opcode.matches(Opcode.RESET, Opcode.CSR_WRITE, Opcode.MEMORY_WRITE)
        m.d.comb += [
            self.address.eq(header.address),
            self.count.eq(header.count),
            self.write.eq(header.opcode[0]),
        ]

        # ---- what the header says; known when it is judged ----
        expected = Signal(8)
        new, repeated, sound, reachable = Signal(), Signal(), Signal(), Signal()
        age = Signal(8)
        m.d.comb += age.eq(expected - header.sequence)
        m.d.sync += [
            new.eq(age == 0),
            repeated.eq((age != 0) & (age <= WINDOW)),
            sound.eq(self._sound(header, left)),
            reachable.eq(self._reachable(header)),
        ]
        m.submodules.kept = kept = Memory(shape=KEPT_BITS, depth=WINDOW, init=[])
        keep, kept_read = kept.write_port(), kept.read_port()
        status = Signal(range(max(Status) + 1))
        m.d.comb += [
            keep.addr.eq(header.sequence),
            keep.data.eq(status),
            kept_read.addr.eq(header.sequence),
        ]

        clock = Signal(32)
        timer = Signal(range(TIMEOUT_CYCLES))
        expired = timer == TIMEOUT_CYCLES - 1
        m.d.sync += [clock.eq(clock + 1), timer.eq(timer + 1)]

        answers = self.answers
        in_session = Signal()
        sequence = Signal(8)  # of the answer
        advance = Signal()  # the request is the next one: it is done, or refused for good
        doing = Signal()
        index = Signal(range(HEADER.size))
        with m.FSM():
            with m.State("frame"):
                m.d.comb += self.frames.ready.eq(1)
                m.d.sync += [left.eq(self.frames.payload), advance.eq(0), doing.eq(0)]
                m.d.sync += [sequence.eq(expected), status.eq(Status.MISSING)]
                with m.If(self.frames.valid):
                    m.next = "header"
                    with m.If(self.frames.payload == 0):
                        m.next = "room"
            with m.State("header"):
                m.d.comb += self.bytes.ready.eq(1)
                with m.If(taken):
                    m.d.sync += [header.eq(Cat(header.as_value()[8:], self.bytes.payload)), index.eq(index + 1)]
                    with m.If(index == HEADER.size - 1):
                        m.next = "check"
            with m.State("check"):
                m.next = "judge"
            with m.State("judge"):
                m.next = "room"
                with m.If(hello & sound):
                    m.d.sync += in_session.eq(1)
                with m.Elif(~in_session):
                    m.d.sync += [sequence.eq(header.sequence), status.eq(Status.NO_SESSION)]
                with m.If((hello & sound) | (in_session & (new | repeated))):
                    m.d.sync += [sequence.eq(header.sequence), advance.eq(~repeated | hello)]
                    with m.If(~sound):
                        m.d.sync += status.eq(Status.MALFORMED)
                    with m.Elif(~reachable):
                        m.d.sync += status.eq(Status.BAD_ADDRESS)
                    with m.Elif(repeated & writes):
                        m.d.sync += status.eq(kept_read.data)
                    with m.Else():
                        m.d.sync += [status.eq(Status.OK), doing.eq(1)]
            with m.State("room"), m.If(self.room):
                m.next = "sequence"
            with m.State("sequence"):
                m.d.comb += [answers.valid.eq(1), answers.payload.byte.eq(sequence)]
                m.d.sync += timer.eq(0)
                with m.If(answers.ready):
                    m.next = "drain"
                    with m.If(doing):
                        m.next = "start"

            # ---- what is asked for ----
            with m.State("start"):
                with m.If(expired):
                    m.d.sync += status.eq(Status.TIMEOUT)
                    m.next = "drain"
                with m.Else(), m.Switch(header.opcode):
                    with m.Case(Opcode.HELLO, Opcode.CLOCK):
                        m.d.sync += self.value.eq(Mux(hello, header.address, clock))
                        m.next = "value"
                    with m.Case(Opcode.RESET):
                        m.d.sync += timer.eq(0)
                        m.next = "reset"
                    with m.Case(Opcode.CSR_READ, Opcode.CSR_WRITE):
                        m.d.comb += self.bytes.ready.eq(left != 0)
                        with m.If(taken):
                            m.d.sync += self.value.eq(Cat(self.value[8:], self.bytes.payload))
                        with m.If((left == 0) & ~self.csr_busy):
                            m.d.comb += self.csr_start.eq(1)
                            m.next = "csr"
                    with m.Default(), m.If(~self.memory_busy):
                        m.d.comb += self.memory_start.eq(1)
                        m.next = "memory"
            with m.State("reset"):
                m.d.comb += self.reset.eq(1)
                with m.If(timer == RESET_CYCLES - 1):
                    m.next = "drain"
            with m.State("csr"):
                with m.If(~self.csr_busy):
                    m.d.sync += [status.eq(self.csr_response), self.value.eq(self.csr_found)]
                    m.next = "drain"
                    with m.If(~self.write & (self.csr_response == 0)):
                        m.next = "value"
                with m.Elif(expired):
                    m.d.sync += status.eq(Status.TIMEOUT)
                    m.next = "drain"
            with m.State("memory"):
                m.d.comb += [
                    self.written.valid.eq(self.bytes.valid),
                    self.written.payload.eq(self.bytes.payload),
                    self.bytes.ready.eq(self.written.ready),
                    answers.valid.eq(self.found.valid),
                    answers.payload.byte.eq(self.found.payload),
                    self.found.ready.eq(answers.ready),
                ]
                with m.If(~self.memory_busy):
                    m.d.sync += status.eq(self.memory_response)
                    m.next = "drain"
                with m.Elif(expired):
                    m.d.comb += self.memory_abandon.eq(1)
                    m.d.sync += status.eq(Status.TIMEOUT)
                    m.next = "drain"
            with m.State("value"):
                m.d.comb += [answers.valid.eq(1), answers.payload.byte.eq(self.value)]
                with m.If(answers.ready):
                    m.d.sync += [self.value.eq(self.value >> 8), index.eq(index + 1)]
                    with m.If(index == 3):
                        limits = (VERSION, 8), (WINDOW, 8), (largest_count(self.arch.burst_bytes), 16)
                        m.d.sync += self.value.eq(Cat(*(Const(*limit) for limit in limits)))
                    with m.If(index == Mux(hello, GREETING.size - 1, 3)):
                        m.d.sync += index.eq(0)
                        m.next = "drain"

            with m.State("drain"):
                m.d.comb += self.bytes.ready.eq(left != 0)
                with m.If(left == 0):
                    m.next = "status"
            with m.State("status"):
                m.d.comb += [answers.valid.eq(1), answers.payload.byte.eq(status), answers.payload.last.eq(1)]
                with m.If(answers.ready):
                    m.d.comb += keep.en.eq(advance)
                    with m.If(advance):
                        m.d.sync += expected.eq(header.sequence + 1)
                    m.next = "frame"
        return m

    def _sound(self, header: data.View, left: Signal) -> Value:
        """Whether opcode, count and data go together; ``left`` bytes of data follow."""
        boundary = ceil_log2(largest_count(self.arch.burst_bytes))
        within = (header.address[:boundary] + header.count - 1)[boundary:] == 0
        has_data = header.opcode.matches(Opcode.CSR_WRITE, Opcode.MEMORY_WRITE)
        return (left == Mux(has_data, header.count, 0)) & (
            (header.opcode.matches(Opcode.HELLO, Opcode.RESET, Opcode.CLOCK) & (header.count == 0))
            | (header.opcode.matches(Opcode.CSR_READ, Opcode.CSR_WRITE) & (header.count == 4))
            | (header.opcode.matches(Opcode.MEMORY_READ, Opcode.MEMORY_WRITE) & (header.count != 0) & within)
        )

    def _reachable(self, header: data.View) -> Value:
        """Whether the address is one of the bus that the opcode is about."""
        csr = (header.address[CSR_ADDR_BITS:] == 0) & (header.address[:2] == 0)
        memory = header.address[self.arch.addr_bits :] == 0
        return (
            header.opcode.matches(Opcode.HELLO, Opcode.RESET, Opcode.CLOCK)
            | (header.opcode.matches(Opcode.CSR_READ, Opcode.CSR_WRITE) & csr)
            | (header.opcode.matches(Opcode.MEMORY_READ, Opcode.MEMORY_WRITE) & memory)
        )
