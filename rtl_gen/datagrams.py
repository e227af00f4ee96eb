"""The host bridge's bytes in UDP's datagrams."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from moe_hw.bridge import FLAG, WINDOW, WORD_BYTES

PHY_DOMAIN, PHY_MHZ = "ethernet", 125.0
"""Clock domain of the Ethernet PHY, in both directions: a byte in a clock at 1 Gbit/s."""

DOMAIN, MHZ = "network", 66.0
"""Clock domain of the core and of all here. LiteEth's longest paths would hold up the fabric; and a word in each of
these clocks is faster than the line, so a frame that is sent has no gaps."""

RECEIVED_WORDS, SENT_WORDS = 2048, 1024
"""Words that can wait: with the frame queue, the requests of a window; and a few of the largest answers."""


class PhyBytes(wiring.Signature):
    """Bytes of Ethernet frames from the preamble on, seen from the core; they do not wait, in either direction.

    Members:
        rx_valid, rx_data, rx_last: what comes in.
        tx_valid, tx_data: what goes out; those of a frame are in a row.
    """

    def __init__(self) -> None:
        super().__init__(
            {"rx_valid": In(1), "rx_data": In(8), "rx_last": In(1), "tx_valid": Out(1), "tx_data": Out(8)}
        )


class UdpPort(wiring.Signature):
    """Words of UDP's datagrams, the first byte lowest, seen from the core.

    Members:
        received_valid, received_data: what comes in, and does not wait.
        received_port, received_address: who sent it; valid with the words.
        sent_valid, sent_ready, sent_data, sent_last: what goes out.
        sent_port, sent_address, sent_length: to whom, and how many bytes; stable from the first word to the last.
    """

    def __init__(self) -> None:
        word = {"valid": 1, "data": 8 * WORD_BYTES, "port": 16, "address": 32}
        super().__init__(
            {
                **{f"received_{name}": Out(width) for name, width in word.items()},
                **{f"sent_{name}": In(width) for name, width in word.items()},
                "sent_last": In(1),
                "sent_length": In(16),
                "sent_ready": Out(1),
            }
        )


class Datagrams(wiring.Component):
    """Takes datagrams apart, and sends each frame as a datagram to whom the last one came from.

    Members
    -------
    udp : In(UdpPort())
        What finds no room of a datagram that comes in is lost.
    received : Out(stream of 8 bits), sent : In(stream of 8 bits)
        The frames of ``docs/bridge.md``.

    Latency: two cycles from a word to its first byte, three from a frame's last byte to its datagram; throughput: a
    byte a cycle.
    """

    def __init__(self) -> None:
        super().__init__(
            {"udp": In(UdpPort()), "received": Out(stream.Signature(8)), "sent": In(stream.Signature(8))}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._receive(m)
        self._send(m)
        return m

    def _receive(self, m: Module) -> None:
        m.submodules.waiting = waiting = SyncFIFOBuffered(width=8 * WORD_BYTES, depth=RECEIVED_WORDS)
        place = Signal(range(WORD_BYTES))
        taken = self.received.valid & self.received.ready
        m.d.comb += [
            waiting.w_en.eq(self.udp.received_valid),
            waiting.w_data.eq(self.udp.received_data),
            self.received.valid.eq(waiting.r_rdy),
            self.received.payload.eq(waiting.r_data.word_select(place, 8)),
            waiting.r_en.eq(taken & (place == WORD_BYTES - 1)),
        ]
        m.d.sync += place.eq(place + taken)

    def _send(self, m: Module) -> None:
        udp, sent = self.udp, self.sent
        m.submodules.words = words = SyncFIFOBuffered(width=8 * WORD_BYTES, depth=SENT_WORDS)
        m.submodules.lengths = lengths = SyncFIFOBuffered(width=len(words.w_level), depth=WINDOW)

        # ---- bytes become words; a frame ends with a flag behind another byte, and flags fill its last word ----
        word = Signal(8 * (WORD_BYTES - 1))
        place = Signal(range(WORD_BYTES))
        count = Signal.like(words.w_level)
        filling, after_flag = Signal(), Signal(init=1)
        byte, taken, ends, whole = Signal(8), Signal(), Signal(), Signal()
        m.d.comb += [
            byte.eq(Mux(filling, FLAG, sent.payload)),
            sent.ready.eq(~filling & words.w_rdy & lengths.w_rdy),
            taken.eq((filling | sent.valid) & words.w_rdy & lengths.w_rdy),
            ends.eq(filling | (byte == FLAG) & ~after_flag),
            whole.eq(taken & (place == WORD_BYTES - 1)),
            words.w_en.eq(whole),
            words.w_data.eq(Cat(word, byte)),
            lengths.w_en.eq(whole & ends),
            lengths.w_data.eq(count + 1),
        ]
        with m.If(taken):
            m.d.sync += [
                word.eq(Cat(word, byte)[8:]),
                place.eq(place + 1),
                after_flag.eq(byte == FLAG),
                filling.eq(ends & ~whole),
            ]
        with m.If(whole):
            m.d.sync += count.eq(Mux(ends, 0, count + 1))

        # ---- words become datagrams ----
        host_port, host_address = Signal.like(udp.received_port), Signal.like(udp.received_address)
        with m.If(udp.received_valid):
            m.d.sync += [host_port.eq(udp.received_port), host_address.eq(udp.received_address)]
        active = Signal()
        left = Signal.like(lengths.r_data)
        m.d.comb += [
            lengths.r_en.eq(~active),
            udp.sent_valid.eq(active & words.r_rdy),
            udp.sent_data.eq(words.r_data),
            udp.sent_last.eq(left == 1),
            words.r_en.eq(active & udp.sent_ready),
        ]
        with m.If(~active & lengths.r_rdy):
            m.d.sync += [
                active.eq(1),
                left.eq(lengths.r_data),
                udp.sent_length.eq(lengths.r_data * WORD_BYTES),
                udp.sent_port.eq(host_port),
                udp.sent_address.eq(host_address),
            ]
        with m.If(udp.sent_valid & udp.sent_ready):
            m.d.sync += [left.eq(left - 1), active.eq(~udp.sent_last)]
