"""The host bridge: memory, CSRs and reset of the accelerator at the end of a serial line."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped

from moe_hw.arch import Arch
from moe_hw.bridge import LARGEST_COUNT
from rtl_gen.bus import AXI4, AXI4Lite
from rtl_gen.deframer import Deframer
from rtl_gen.frame_queue import FrameQueue
from rtl_gen.framer import CONTENT, Framer
from rtl_gen.registers import host_addr_bits
from rtl_gen.requests import Requests
from rtl_gen.skid_buffer import SkidBuffer
from rtl_gen.uart import UartReceiver, UartTransmitter

LARGEST_ANSWER = 1 + LARGEST_COUNT + 1 + 2
"""Bytes of an answer's content; two more, as the room is known two cycles late."""

ANSWER_BYTES = 2048
"""Bytes of answers that can wait for the line: a block RAM."""


class Bridge(wiring.Component):
    """The device's side of ``docs/bridge.md``.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.
    clock_hz, baud : int
        As of ``BitClock``.
    memory_registers : bool
        As of ``RequestCheck``.
    network : bool
        There is a second line, for bytes. Answers go where the last byte came from.

    Members
    -------
    rx : In(1), tx : Out(1)
        The pins of the line; ``rx`` has no relation to the clock.
    received : In(stream of 8 bits), sent : Out(stream of 8 bits)
        The second line.
    m_axi : Out(AXI4(arch)), m_axil : Out(AXI4Lite(host_addr_bits(memory_registers)))
        Device memory and CSRs.
    reset : Out(1)
        Of the accelerator, not of the memory.

    Latency: 23 cycles from the middle of a request's last bit to the answer's first; throughput: all that the line
    carries.
    """

    def __init__(
        self, arch: Arch, clock_hz: int, baud: int, memory_registers: bool = False, network: bool = False
    ):
        self.arch = arch
        self.memory_registers = memory_registers
        self.network = network
        self._receiver, self._transmitter = UartReceiver(clock_hz, baud), UartTransmitter(clock_hz, baud)
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "m_axi": Out(AXI4(arch)),
                "m_axil": Out(AXI4Lite(host_addr_bits(memory_registers))),
                "reset": Out(1),
                **({"received": In(stream.Signature(8)), "sent": Out(stream.Signature(8))} if network else {}),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.receiver = receiver = self._receiver
        m.submodules.deframer = deframer = Deframer()
        m.submodules.queue = queue = FrameQueue()
        m.submodules.requests = requests = Requests(self.arch, self.memory_registers)
        m.submodules.answers = answers = SyncFIFOBuffered(width=CONTENT.size, depth=ANSWER_BYTES)
        m.submodules.framer = framer = Framer()
        m.submodules.transmitter = transmitter = self._transmitter

        # ---- requests come in ----
        if self.network:
            taken = Signal()
            m.d.comb += [
                self.received.ready.eq(queue.room & ~receiver.valid),
                taken.eq(self.received.valid & self.received.ready),
                deframer.valid.eq(receiver.valid | taken),
                deframer.data.eq(Mux(receiver.valid, receiver.data, self.received.payload)),
            ]
        else:
            m.d.comb += [deframer.valid.eq(receiver.valid), deframer.data.eq(receiver.data)]
        m.d.comb += [
            receiver.rx.eq(self.rx),
            queue.valid.eq(deframer.o_valid),
            queue.data.eq(deframer.o_data),
            queue.end.eq(deframer.end),
            queue.good.eq(deframer.good),
        ]
        connect(m, queue.frames, requests.frames)
        m.submodules.next_byte = next_byte = SkidBuffer(8)  # the queue is block RAM, and the requests wait for much
        connect(m, queue.bytes, next_byte.i)
        connect(m, next_byte.o, requests.bytes)

        # ---- are done ----
        m.d.sync += self.reset.eq(requests.reset)
        connect(m, requests.m_axi, flipped(self.m_axi))
        connect(m, requests.m_axil, flipped(self.m_axil))

        # ---- answers go out ----
        m.d.comb += [
            answers.w_data.eq(requests.answers.payload),
            answers.w_en.eq(requests.answers.valid),
            requests.answers.ready.eq(answers.w_rdy),
            framer.content.payload.eq(answers.r_data),
            framer.content.valid.eq(answers.r_rdy),
            answers.r_en.eq(framer.content.ready),
            self.tx.eq(transmitter.tx),
        ]
        m.d.sync += requests.room.eq(answers.w_level < ANSWER_BYTES - LARGEST_ANSWER)
        m.submodules.last_byte = last_byte = SkidBuffer(8)  # when a byte is sent is known late
        connect(m, framer.line, last_byte.i)
        if self.network:
            to_network = Signal()
            with m.If(receiver.valid | taken):
                m.d.sync += to_network.eq(taken)
            m.d.comb += [
                self.sent.payload.eq(last_byte.o.payload),
                self.sent.valid.eq(last_byte.o.valid & to_network),
                transmitter.bytes.payload.eq(last_byte.o.payload),
                transmitter.bytes.valid.eq(last_byte.o.valid & ~to_network),
                last_byte.o.ready.eq(Mux(to_network, self.sent.ready, transmitter.bytes.ready)),
            ]
        else:
            connect(m, last_byte.o, transmitter.bytes)
        return m
