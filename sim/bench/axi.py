"""AXI for benches: cocotbext-axi behind two helpers, with the pause patterns of ``sim.bench.streams``."""

from __future__ import annotations

from typing import Any

from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from moe_hw.registers import csr_address
from sim.bench import streams


def memory(dut: Any, size: int, pattern: streams.Pattern = streams.always) -> AxiRam:
    """A memory of ``size`` bytes at ``dut.m_axi``, every channel of which pauses in its own ``pattern``."""
    ram = AxiRam(AxiBus.from_prefix(dut, "m_axi_"), dut.clk, dut.rst, size=size)
    for channel in (
        ram.write_if.aw_channel,
        ram.write_if.w_channel,
        ram.write_if.b_channel,
        ram.read_if.ar_channel,
        ram.read_if.r_channel,
    ):
        channel.set_pause_generator(not active for active in pattern())
    return ram


class Csrs:
    """CSR accesses by name at the AXI4-Lite port ``prefix``."""

    def __init__(self, dut: Any, prefix: str = "s_axil_", pattern: streams.Pattern = streams.always):
        self.master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, prefix), dut.clk, dut.rst)
        for channel in (
            self.master.write_if.aw_channel,
            self.master.write_if.w_channel,
            self.master.write_if.b_channel,
            self.master.read_if.ar_channel,
            self.master.read_if.r_channel,
        ):
            channel.set_pause_generator(not active for active in pattern())

    async def read(self, name: str) -> int:
        return await self.master.read_dword(csr_address(name))

    async def write(self, name: str, value: int) -> None:
        await self.master.write_dword(csr_address(name), value)
