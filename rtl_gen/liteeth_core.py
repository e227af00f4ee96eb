"""LiteEth's UDP core and its PHY for RGMII on an ECP5: two Verilog modules, and bytes of frames between them.

LiteEth is written in Migen, and no other file knows that. All its memories are queues, which show no word before it has
been written: ``ECP5.flow`` leaves open what comes of one that is read while it is written.

As in :mod:`rtl_gen.litedram_core` there are two modules, so that the core is the same text on the FPGA and in
simulation, where the primitives of the PHY have no models.
"""

from __future__ import annotations

from liteeth.common import eth_phy_description
from liteeth.core import LiteEthUDPIPCore
from liteeth.phy.ecp5rgmii import LiteEthPHYRGMII
from litex.build.lattice.common import lattice_ecp5_special_overrides
from litex.gen import LiteXModule
from litex.soc.interconnect.stream import Endpoint
from migen import ClockDomain, Record
from migen.fhdl import verilog

from boards import Ethernet
from moe_hw.bridge import UDP_PORT, WORD_BYTES

CORE_MODULE, PHY_MODULE = "ethernet_core", "ethernet_phy"
"""Names of the two modules."""

WORD_BITS = 8 * WORD_BYTES

_PHY_BYTES = [("rx_valid", 1), ("rx_data", 8), ("rx_last", 1), ("tx_valid", 1), ("tx_data", 8)]
_WORDS = [("valid", 1), ("data", WORD_BITS), ("port", 16), ("address", 32)]
"""The members of ``rtl_gen.datagrams``' interfaces."""


def core_verilog(ethernet: Ethernet, clock_hz: int) -> str:
    """MAC, ARP, ping and UDP of the station ``ethernet``.

    Parameters:
        clock_hz: of the side of the datagrams.
    """
    return _verilog(_Core(ethernet, clock_hz), CORE_MODULE)


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

    def __init__(self, ethernet: Ethernet, clock_hz: int):
        self.cd_eth_rx, self.cd_eth_tx = ClockDomain("eth_rx"), ClockDomain("eth_tx")
        phy = _PhyEndpoints()
        # Words of 32 bits at 80 MHz are faster than the line: a frame that is sent has no gaps.
        mac = int(ethernet.mac.replace(":", ""), 16)
        self.core = LiteEthUDPIPCore(phy, mac, ethernet.address, clock_hz, dw=WORD_BITS)
        user = self.core.udp.crossbar.get_port(UDP_PORT, dw=WORD_BITS)
        pads = Record(_PHY_BYTES, name="phy")
        received = Record(_WORDS, name="received")
        sent = Record([*_WORDS, ("last", 1), ("length", 16), ("ready", 1)], name="sent")
        self.comb += [
            phy.source.valid.eq(pads.rx_valid), phy.source.data.eq(pads.rx_data), phy.source.last.eq(pads.rx_last),
            pads.tx_valid.eq(phy.sink.valid), pads.tx_data.eq(phy.sink.data), phy.sink.ready.eq(1),
            received.valid.eq(user.source.valid), received.data.eq(user.source.data),
            received.port.eq(user.source.src_port), received.address.eq(user.source.ip_address),
            user.source.ready.eq(1),
            user.sink.valid.eq(sent.valid), user.sink.last.eq(sent.last), user.sink.data.eq(sent.data),
            user.sink.last_be.eq(sent.last << WORD_BITS // 8 - 1), user.sink.length.eq(sent.length),
            user.sink.src_port.eq(UDP_PORT), user.sink.dst_port.eq(sent.port), user.sink.ip_address.eq(sent.address),
            sent.ready.eq(user.sink.ready),
        ]  # fmt: skip
        clocks = [signal for domain in (self.cd_eth_rx, self.cd_eth_tx) for signal in (domain.clk, domain.rst)]
        self.ports = {*clocks, *pads.flatten(), *received.flatten(), *sent.flatten()}


class _Phy(LiteXModule):
    """The chip delays the clock that it sends; the one that it gets is delayed here."""

    def __init__(self) -> None:
        clocks = Record([("tx", 1), ("rx", 1)], name="pads_clk")
        pads = Record(
            [("rst_n", 1), ("rx_ctl", 1), ("rx_data", 4), ("tx_ctl", 1), ("tx_data", 4)], name="pads"
        )
        self.phy = phy = LiteEthPHYRGMII(clocks, pads, rx_delay=0, with_inband_status=False)
        fabric = Record(_PHY_BYTES, name="phy")
        clock = Record([("clk", 1), ("rst", 1)], name="eth")
        self.comb += [
            fabric.rx_valid.eq(phy.source.valid), fabric.rx_data.eq(phy.source.data),
            fabric.rx_last.eq(phy.source.last), phy.sink.valid.eq(fabric.tx_valid), phy.sink.data.eq(fabric.tx_data),
            clock.clk.eq(phy.crg.cd_eth_rx.clk), clock.rst.eq(phy.crg.cd_eth_rx.rst),
        ]  # fmt: skip
        self.ports = {*clocks.flatten(), *pads.flatten(), *fabric.flatten(), *clock.flatten()}


def _verilog(module: _Core | _Phy, name: str) -> str:
    return str(verilog.convert(module, module.ports, name, special_overrides=lattice_ecp5_special_overrides))
