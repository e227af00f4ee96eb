"""Does the host's requests, each once, and answers them."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped

from moe_hw.arch import Arch
from moe_hw.bridge import (
    GREETING,
    HEADER,
    RESET_CYCLES,
    TIMEOUT_CYCLES,
    VERSION,
    WINDOW,
    Opcode,
    Status,
    largest_count,
)
from rtl_gen.bus import AXI4, AXI4Lite, AXI4Read, AXI4Write, connect_half
from rtl_gen.csr_access import CsrAccess
from rtl_gen.frame_queue import LONGEST
from rtl_gen.framer import CONTENT
from rtl_gen.memory_access import MemoryAccess
from rtl_gen.registers import host_addr_bits
from rtl_gen.request_check import HEADER_LAYOUT, RequestCheck

KEPT_BITS = 3
"""Bits of a status that is kept: ``MISSING`` and ``NO_SESSION`` are not."""


class Requests(wiring.Component):
    """The requests of ``docs/bridge.md``: what each means, the sequence numbers, and the bound on every wait.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.
    memory_registers : bool
        As of ``RequestCheck``.

    Members
    -------
    frames : In(stream of a number of bytes), bytes : In(stream of 8 bits)
        As of ``FrameQueue``.
    answers : Out(stream of CONTENT), room : In(1)
        The content of answers; there is room for a whole one.
    m_axi : Out(AXI4(arch)), m_axil : Out(AXI4Lite(host_addr_bits(memory_registers)))
        Device memory and CSRs.
    reset : Out(1)
        Of the accelerator.

    Latency: 15 cycles from a frame to the start of its access; throughput: a byte a cycle.
    """

    def __init__(self, arch: Arch, memory_registers: bool = False):
        self.arch = arch
        self.memory_registers = memory_registers
        super().__init__(
            {
                "frames": In(stream.Signature(range(LONGEST + 1))),
                "bytes": In(stream.Signature(8)),
                "answers": Out(stream.Signature(CONTENT)),
                "room": In(1),
                "m_axi": Out(AXI4(arch)),
                "m_axil": Out(AXI4Lite(host_addr_bits(memory_registers))),
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

        # ---- what does the requests ----
        value = Signal(32)  # goes to a CSR, or into an answer
        m.submodules.memory = memory = MemoryAccess(self.arch)
        m.submodules.csrs = csrs = CsrAccess(host_addr_bits(self.memory_registers))
        m.d.comb += [
            memory.write.eq(header.opcode == Opcode.MEMORY_WRITE),
            memory.address.eq(header.address),
            memory.count.eq(header.count),
            csrs.write.eq(header.opcode == Opcode.CSR_WRITE),
            csrs.address.eq(header.address),
            csrs.value.eq(value),
            csrs.clear.eq(self.reset),
        ]
        connect_half(m, self.m_axi, memory, AXI4Read(self.arch))
        connect_half(m, self.m_axi, memory, AXI4Write(self.arch))
        connect(m, csrs.m_axil, flipped(self.m_axil))

        # ---- what the header says; known when it is judged ----
        m.submodules.check = check = RequestCheck(self.arch, self.memory_registers)
        m.d.comb += [check.header.eq(header), check.data.eq(left)]
        writes = header.opcode.matches(Opcode.RESET, Opcode.CSR_WRITE, Opcode.MEMORY_WRITE)
        greets = hello & check.sound
        expected = Signal(8)
        new, repeated = Signal(), Signal()
        age = Signal(8)
        m.d.comb += age.eq(expected - header.sequence)
        m.d.sync += [new.eq(age == 0), repeated.eq((age != 0) & (age <= WINDOW))]
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
                with m.If(greets):
                    m.d.sync += in_session.eq(1)
                with m.Elif(~in_session):
                    m.d.sync += [sequence.eq(header.sequence), status.eq(Status.NO_SESSION)]
                with m.If(greets | (in_session & (new | repeated))):
                    m.d.sync += [sequence.eq(header.sequence), advance.eq(new | greets)]
                    with m.If(~check.sound):
                        m.d.sync += status.eq(Status.MALFORMED)
                    with m.Elif(~check.reachable):
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
                        m.d.sync += value.eq(Mux(hello, header.address, clock))
                        m.next = "value"
                    with m.Case(Opcode.RESET):
                        m.d.sync += timer.eq(0)
                        m.next = "reset"
                    with m.Case(Opcode.CSR_READ, Opcode.CSR_WRITE):
                        m.d.comb += self.bytes.ready.eq(left != 0)
                        with m.If(taken):
                            m.d.sync += value.eq(Cat(value[8:], self.bytes.payload))
                        with m.If((left == 0) & ~csrs.busy):
                            m.d.comb += csrs.start.eq(1)
                            m.next = "csr"
                    with m.Default(), m.If(~memory.busy):
                        m.d.comb += memory.start.eq(1)
                        m.next = "memory"
            with m.State("reset"):
                m.d.comb += self.reset.eq(1)
                with m.If(timer == RESET_CYCLES - 1):
                    m.next = "drain"
            with m.State("csr"):
                with m.If(~csrs.busy):
                    m.d.sync += [status.eq(csrs.response), value.eq(csrs.found)]
                    m.next = "drain"
                    with m.If(~csrs.write & (csrs.response == 0)):
                        m.next = "value"
                with m.Elif(expired):
                    m.d.sync += status.eq(Status.TIMEOUT)
                    m.next = "drain"
            with m.State("memory"):
                m.d.comb += [
                    memory.written.valid.eq(self.bytes.valid),
                    memory.written.payload.eq(self.bytes.payload),
                    self.bytes.ready.eq(memory.written.ready),
                    answers.valid.eq(memory.found.valid),
                    answers.payload.byte.eq(memory.found.payload),
                    memory.found.ready.eq(answers.ready),
                ]
                with m.If(~memory.busy):
                    m.d.sync += status.eq(memory.response)
                    m.next = "drain"
                with m.Elif(expired):
                    m.d.comb += memory.abandon.eq(1)
                    m.d.sync += status.eq(Status.TIMEOUT)
                    m.next = "drain"
            with m.State("value"):
                m.d.comb += [answers.valid.eq(1), answers.payload.byte.eq(value)]
                with m.If(answers.ready):
                    m.d.sync += [value.eq(value >> 8), index.eq(index + 1)]
                    with m.If(index == 3):
                        limits = (VERSION, 8), (WINDOW, 8), (largest_count(self.arch.burst_bytes), 16)
                        m.d.sync += value.eq(Cat(*(Const(*limit) for limit in limits)))
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
