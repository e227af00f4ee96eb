"""The probe keeps all of its block and has no paths of its own that matter."""

import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from moe_hw.arch import Arch
from rtl_gen.bursts import Bursts
from rtl_gen.emit import to_verilog
from rtl_gen.probe import LFSR_BITS, Probe
from rtl_gen.synthesis import ECP5, count


class Through(wiring.Component):
    """Nothing but ports: ``outputs`` bits that depend on ``inputs`` bits."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__({"i": In(stream.Signature(inputs)), "o": Out(outputs)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += [self.i.ready.eq(self.i.valid), self.o.eq(self.i.payload)]
        return m


@pytest.mark.parametrize("bits", [1, 2, 5, 64, 1000])
def test_every_port_bit_has_a_register(bits: int) -> None:
    used = count(to_verilog(Probe(Through(bits, bits)), "probe"), "probe", ECP5)
    tree, width = 0, bits + 1
    while width > 1:
        width = -(-width // 4)
        tree += width
    assert used.flip_flops == LFSR_BITS + 2 * (bits + 1) + tree
    assert used.luts <= tree + 1


def test_block_stays_whole() -> None:
    alone = count(to_verilog(Bursts(Arch()), "block"), "block", ECP5)
    probed = count(to_verilog(Probe(Bursts(Arch())), "probe"), "probe", ECP5)
    assert alone.luts > 0 and alone.flip_flops > 0
    assert probed.luts >= alone.luts and probed.flip_flops > alone.flip_flops + LFSR_BITS
