"""The board's SDR SDRAM as an AXI4 slave: front end, clock crossing and controller."""

from __future__ import annotations

from amaranth.hdl import DomainRenamer, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from boards import Board
from moe_hw.arch import Arch
from rtl_gen.bus import AXI4
from rtl_gen.sdram_controller import SdramController
from rtl_gen.sdram_front import SdramFront
from rtl_gen.sdram_pins import SdramPins
from rtl_gen.sdram_timing import BURST

DOMAIN = "sdram"
"""The clock domain of the chip and its controller."""


class Sdram(wiring.Component):
    """An AXI4 slave in the domain ``sync`` with the chip in the domain ``sdram``.

    The clocks may have any phase; the fabric's is at least half as fast as the chip's, so that it takes words as fast
    as they come. Both domains are reset together, for at least four clocks of the slower one; the chip is then
    initialised anew, 210 µs during which bursts wait.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator, for the bus: 32 bits wide.
    board : Board
        Its memory is one SDR SDRAM of 16 bits.

    Members
    -------
    axi : In(AXI4(arch))
        INCR bursts of whole words of any length, see :class:`rtl_gen.sdram_axi.SdramAxi`.
    pins : Out(SdramPins(memory))
        In the domain ``sdram``, for :class:`rtl_gen.sdram_pins.SdramPads`.

    Latency: 18 cycles of 80 MHz from a read of an open row to its word, with the chip at 133 MHz. Throughput: 98.5 % of
    the chip's pins for long sequential reads and writes; the rest is refresh.
    """

    def __init__(self, arch: Arch, board: Board):
        memory = board.memory
        if arch.data_bits != BURST * memory.data_bits:
            raise ValueError(
                f"data_bits: expected {BURST * memory.data_bits}, two transfers of the memory, got {arch.data_bits}"
            )
        slowest = memory.mt_per_s / BURST
        if board.clock_mhz < slowest:
            raise ValueError(f"clock_mhz: expected at least {slowest:g}, half of the memory's, got {board.clock_mhz:g}")
        self.arch = arch
        self.memory = memory
        super().__init__({"axi": In(AXI4(arch)), "pins": Out(SdramPins(memory))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.front = front = SdramFront(self.arch, self.memory, DOMAIN)
        controller = SdramController(self.memory)
        m.submodules.controller = DomainRenamer(DOMAIN)(controller)
        connect(m, flipped(self.axi), front.axi)
        connect(m, front.segments, controller.segments)
        connect(m, front.writes, controller.writes)
        connect(m, controller.pins, flipped(self.pins))
        m.d.comb += [front.words.eq(controller.words), front.word_valid.eq(controller.word_valid)]
        return m
