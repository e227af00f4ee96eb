"""The host's accesses at the accelerator's CSRs and at the memory's registers: each reaches one of them."""

import random

import cocotb
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotbext.axi import AxiLiteBus, AxiLiteRam

from moe_hw.ddr3 import REGISTERS_ADDR_BITS, REGISTERS_BASE
from rtl_gen.axil_split import AxilSplit
from rtl_gen.bus import AXI4Lite
from rtl_gen.csr_access import CsrAccess
from rtl_gen.registers import CSR_ADDR_BITS, HOST_ADDR_BITS
from sim.bench import streams
from sim.bench.axi import pause
from sim.bench.runner import run_bench
from tests.rtl_gen.test_csr_access import INPUTS, access

SLAVES = {"csrs_": (0, 1 << CSR_ADDR_BITS), "registers_": (REGISTERS_BASE, 1 << REGISTERS_ADDR_BITS)}


class Board(wiring.Component):
    """The block behind its master, under the names of ``CsrAccess``."""

    def __init__(self):
        members = CsrAccess(HOST_ADDR_BITS).signature.members
        self._own = [name for name in members if name != "m_axil"]
        super().__init__(
            {
                **{name: members[name] for name in self._own},
                "csrs": Out(AXI4Lite(CSR_ADDR_BITS)),
                "registers": Out(AXI4Lite(REGISTERS_ADDR_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.master = master = CsrAccess(HOST_ADDR_BITS)
        m.submodules.split = split = AxilSplit()
        connect(m, master.m_axil, split.master)
        connect(m, split.csrs, flipped(self.csrs))
        connect(m, split.registers, flipped(self.registers))
        for name in self._own:
            outer, inner = getattr(self, name), getattr(master, name)
            m.d.comb += inner.eq(outer) if self.signature.members[name].flow is In else outer.eq(inner)
        return m


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(pattern=list(streams.PATTERNS))
async def random_accesses(dut, pattern):
    for name in INPUTS:
        getattr(dut, name).value = 0
    rams = {}
    for prefix, (_, size) in SLAVES.items():
        rams[prefix] = AxiLiteRam(AxiLiteBus.from_prefix(dut, prefix), dut.clk, dut.rst, size=size)
        pause(rams[prefix], streams.PATTERNS[pattern])
    await streams.start(dut)
    expected = {prefix: bytearray(size) for prefix, (_, size) in SLAVES.items()}
    for _ in range(100):
        prefix = random.choice(list(SLAVES))
        base, size = SLAVES[prefix]
        place = random.randrange(0, size, 4)
        word = (base + place) // 4
        if random.random() < 0.5:
            value = random.getrandbits(32)
            expected[prefix][place : place + 4] = value.to_bytes(4, "little")
            await access(dut, True, word, value)
        else:
            found = await access(dut, False, word)
            assert found.to_bytes(4, "little") == expected[prefix][place : place + 4]
    for prefix, (_, size) in SLAVES.items():
        assert rams[prefix].read(0, size) == expected[prefix]


def test_axil_split() -> None:
    run_bench(Board(), __name__)
