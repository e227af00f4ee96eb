"""Two AXI4 masters at one slave: the accelerator and the host bridge share the board's memory."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from moe_hw.arch import Arch
from rtl_gen.bus import AXI4

MAX_BURSTS = 16
"""Bursts of each direction that may be under way."""

REQUEST = ("addr", "len", "size", "burst")
"""What is passed on of a request; the ID is always 0."""


class AxiArbiter(wiring.Component):
    """Passes bursts on in turn, and their data and answers in the order of the bursts.

    Reads and writes are independent. If both masters ask, the one goes first that did not go last: so neither waits for
    more than one burst of the other. Write data follow in the order of their addresses: a master that offers an address
    and keeps its words back stops the other's writes, though not its reads.

    Parameters
    ----------
    arch : Arch
        Sizes of the accelerator.

    Members
    -------
    master_0, master_1 : In(AXI4(arch))
        Ports for the masters.
    slave : Out(AXI4(arch))
        For the slave, which answers in the order of its requests.

    Latency: one cycle on requests, none on data and answers; words go two cycles after their address at the earliest.
    Throughput: a burst every cycle, a word a cycle.
    """

    def __init__(self, arch: Arch):
        self.arch = arch
        super().__init__({"master_0": In(AXI4(arch)), "master_1": In(AXI4(arch)), "slave": Out(AXI4(arch))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        slave, masters = self.slave, (self.master_0, self.master_1)
        m.submodules.reads = reads = SyncFIFOBuffered(width=1, depth=MAX_BURSTS)
        m.submodules.words = words = SyncFIFOBuffered(width=1, depth=MAX_BURSTS)
        m.submodules.answers = answers = SyncFIFOBuffered(width=1, depth=MAX_BURSTS)
        self._requests(m, "ar", reads)
        # Words wait until their address has been taken: AXI does not ask for it, but simple memories do. There is room
        # for them: each also has its place among the answers.
        owner = self._requests(m, "aw", answers)
        m.d.comb += [words.w_en.eq(slave.awvalid & slave.awready), words.w_data.eq(owner)]

        for number, master in enumerate(masters):
            mine = reads.r_rdy & (reads.r_data == number)
            m.d.comb += [
                master.rvalid.eq(slave.rvalid & mine),
                master.rdata.eq(slave.rdata),
                master.rresp.eq(slave.rresp),
                master.rlast.eq(slave.rlast),
            ]
            with m.If(mine):
                m.d.comb += slave.rready.eq(master.rready)
            mine = words.r_rdy & (words.r_data == number)
            m.d.comb += master.wready.eq(slave.wready & mine)
            with m.If(mine):
                m.d.comb += slave.wvalid.eq(master.wvalid)
            with m.If(words.r_data == number):
                m.d.comb += [
                    slave.wdata.eq(master.wdata),
                    slave.wstrb.eq(master.wstrb),
                    slave.wlast.eq(master.wlast),
                ]
            mine = answers.r_rdy & (answers.r_data == number)
            m.d.comb += [master.bvalid.eq(slave.bvalid & mine), master.bresp.eq(slave.bresp)]
            with m.If(mine):
                m.d.comb += slave.bready.eq(master.bready)
        m.d.comb += [
            reads.r_en.eq(slave.rvalid & slave.rready & slave.rlast),
            words.r_en.eq(slave.wvalid & slave.wready & slave.wlast),
            answers.r_en.eq(slave.bvalid & slave.bready),
        ]
        return m

    def _requests(self, m: Module, channel: str, owners: SyncFIFOBuffered) -> Signal:
        """Register one of the requests of a channel and note in ``owners`` whose it is; whose it is."""

        def signal(port: wiring.PureInterface, name: str) -> Signal:
            return getattr(port, f"{channel}{name}")

        slave, masters = self.slave, (self.master_0, self.master_1)
        asks = [signal(master, "valid") for master in masters]
        last, chosen, free = (Signal(name=f"{channel}_{name}") for name in ("last", "chosen", "free"))
        m.d.comb += [
            chosen.eq(Mux(asks[0] & asks[1], ~last, asks[1])),
            free.eq(owners.w_rdy & (~signal(slave, "valid") | signal(slave, "ready"))),
            owners.w_data.eq(chosen),
        ]
        with m.If(signal(slave, "ready")):
            m.d.sync += signal(slave, "valid").eq(0)
        for number, master in enumerate(masters):
            with m.If(free & asks[number] & (chosen == number)):
                m.d.comb += [signal(master, "ready").eq(1), owners.w_en.eq(1)]
                m.d.sync += [last.eq(number), signal(slave, "valid").eq(1)]
                m.d.sync += [signal(slave, name).eq(signal(master, name)) for name in REQUEST]
        return last
