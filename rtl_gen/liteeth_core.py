"""LiteEth's UDP core and its PHY for RGMII on an ECP5: two Verilog modules, and bytes of frames between them.

LiteEth is written in Migen, and no other file knows that. All its memories are queues, which show no word before it has
been written: ``ECP5.flow`` leaves open what comes of one that is read while it is written.

As in :mod:`rtl_gen.litedram_core` there are two modules, so that the core is the same text on the FPGA and in
simulation, where the primitives of the PHY have no models.
"""

from __future__ import annotations

from types import SimpleNamespace

from amaranth.lib.wiring import Signature
from liteeth.common import eth_phy_description
from liteeth.core import LiteEthUDPIPCore
from liteeth.phy.ecp5rgmii import LiteEthPHYRGMII
from litex.build.lattice.common import lattice_ecp5_special_overrides
from litex.gen import LiteXModule
from litex.soc.interconnect.stream import Endpoint
from migen import ClockDomain, Record, Signal
from migen.fhdl import verilog

from boards import Ethernet
from moe_hw.bridge import UDP_PORT, WORD_BYTES
from rtl_gen.datagrams import MHZ, PhyBytes, UdpPort

CORE_MODULE, PHY_MODULE = "ethernet_core", "ethernet_phy"
"""Names of the two modules."""

_WORD_BITS = 8 * WORD_BYTES


def core_verilog(ethernet: Ethernet) -> str:
    """MAC, ARP, ping and UDP of the station ``ethernet``."""
    return _verilog(_Core(ethernet), CORE_MODULE)


def phy_verilog() -> str:
    """The pads of RGMII at 1 Gbit/s. Both directions have the clock that the PHY chip sends."""
    return _verilog(_Phy(), PHY_MODULE)


class _PhyEndpoints:
    """What LiteEth takes for a PHY."""

    dw = 8

    def __init__(self) -> None:
        self.sink, self.source = (Endpoint(eth_phy_description(self.dw)) for _ in range(2))


class _Core(LiteXModule):
    """Datagrams are whole words; those to another port than ``UDP_PORT`` are dropped."""

    def __init__(self, ethernet: Ethernet):
        self.cd_eth_rx, self.cd_eth_tx = ClockDomain("eth_rx"), ClockDomain("eth_tx")
        phy = _PhyEndpoints()
        mac = int(ethernet.mac.replace(":", ""), 16)
        self.core = LiteEthUDPIPCore(phy, mac, ethernet.address, MHZ * 1e6, dw=_WORD_BITS)
        user = self.core.udp.crossbar.get_port(UDP_PORT, dw=_WORD_BITS)
        pads, words = _ports(PhyBytes(), "phy_"), _ports(UdpPort())
        self.comb += [
            phy.source.valid.eq(pads.rx_valid), phy.source.data.eq(pads.rx_data), phy.source.last.eq(pads.rx_last),
            pads.tx_valid.eq(phy.sink.valid), pads.tx_data.eq(phy.sink.data), phy.sink.ready.eq(1),
            words.received_valid.eq(user.source.valid), words.received_data.eq(user.source.data),
            words.received_port.eq(user.source.src_port), words.received_address.eq(user.source.ip_address),
            user.source.ready.eq(1),
            user.sink.valid.eq(words.sent_valid), user.sink.last.eq(words.sent_last),
            user.sink.data.eq(words.sent_data), user.sink.last_be.eq(words.sent_last << WORD_BYTES - 1),
            user.sink.length.eq(words.sent_length), user.sink.src_port.eq(UDP_PORT),
            user.sink.dst_port.eq(words.sent_port), user.sink.ip_address.eq(words.sent_address),
            words.sent_ready.eq(user.sink.ready),
        ]  # fmt: skip
        clocks = [signal for domain in (self.cd_eth_rx, self.cd_eth_tx) for signal in (domain.clk, domain.rst)]
        self.ports = {*clocks, *vars(pads).values(), *vars(words).values()}


class _Phy(LiteXModule):
    """The chip delays the clock that it sends; the one that it gets is delayed here."""

    def __init__(self) -> None:
        clocks = Record([("tx", 1), ("rx", 1)], name="pads_clk")
        pads = Record(
            [("rst_n", 1), ("rx_ctl", 1), ("rx_data", 4), ("tx_ctl", 1), ("tx_data", 4)], name="pads"
        )
        self.phy = phy = LiteEthPHYRGMII(clocks, pads, rx_delay=0, with_inband_status=False)
        fabric = _ports(PhyBytes(), "phy_")
        clock = Record([("clk", 1), ("rst", 1)], name="eth")
        self.comb += [
            fabric.rx_valid.eq(phy.source.valid), fabric.rx_data.eq(phy.source.data),
            fabric.rx_last.eq(phy.source.last), phy.sink.valid.eq(fabric.tx_valid), phy.sink.data.eq(fabric.tx_data),
            clock.clk.eq(phy.crg.cd_eth_rx.clk), clock.rst.eq(phy.crg.cd_eth_rx.rst),
        ]  # fmt: skip
        self.ports = {*clocks.flatten(), *pads.flatten(), *vars(fabric).values(), *clock.flatten()}


def _ports(signature: Signature, prefix: str = "") -> SimpleNamespace:
    """A signal of Migen's for each member of ``signature``; ``prefix`` is that of their names in Verilog."""
    return SimpleNamespace(
        **{name: Signal(member.shape, name=f"{prefix}{name}") for name, member in signature.members.items()}
    )


def _verilog(module: _Core | _Phy, name: str) -> str:
    return str(verilog.convert(module, module.ports, name, special_overrides=lattice_ecp5_special_overrides))
