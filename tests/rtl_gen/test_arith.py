"""Shifts, roundings and norm16, against the integer twin; and the pipeline that carries their steps."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from amaranth.hdl import Fragment, Module, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import RisingEdge, Timer

from moe_hw.arch import EXP_BITS
from moe_hw.twins import arith as twin
from rtl_gen.arith import Pipeline, align16, bit_length, magnitude, norm16, round16, rshift
from sim.bench.runner import parameter, run_bench
from sim.bench.streams import start, unpack

WIDTHS = (1, 2, 16, 17, 48)
STAGES = 4


class Steps(wiring.Component):
    """Every function on an operand of ``width`` bits, and norm16 with registers between its steps."""

    def __init__(self, width: int):
        self.width = width
        super().__init__(
            {
                "value": In(width),
                "amount": In(6),
                "exponent": In(signed(EXP_BITS)),
                "valid": In(1),
                "enable": In(1),
                "length": Out(6),
                "magnitude": Out(width),
                "shifted": Out(width),
                "shifted_signed": Out(signed(width)),
                "norm_mantissa": Out(16),
                "norm_exponent": Out(signed(EXP_BITS)),
                "late_valid": Out(1),
                "late_mantissa": Out(16),
                "late_exponent": Out(signed(EXP_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        mantissa, exponent = norm16(m, self.value, self.exponent)
        m.d.comb += [
            self.length.eq(bit_length(self.value)),
            self.magnitude.eq(magnitude(self.value.as_signed())),
            self.shifted.eq(rshift(m, self.value, self.amount)),
            self.shifted_signed.eq(rshift(m, self.value.as_signed(), self.amount)),
            self.norm_mantissa.eq(mantissa),
            self.norm_exponent.eq(exponent),
        ]
        p = Pipeline(m, self.valid, self.enable)
        p.stage(value=self.value, exponent=self.exponent)
        p.stage(length=bit_length(p.value))
        p.stage(aligned=align16(p.value, p.length), value=None)
        mantissa, exponent = round16(p.aligned, p.length, p.exponent)
        p.stage(mantissa=mantissa, exponent=exponent)
        m.d.comb += [
            self.late_valid.eq(p.valid),
            self.late_mantissa.eq(p.mantissa),
            self.late_exponent.eq(p.exponent),
        ]
        return m


@pytest.mark.parametrize("width", WIDTHS)
def test_arith(width: int) -> None:
    run_bench(Steps(width), __name__, width=width)


def test_pipeline_names_a_missing_value() -> None:
    m = Module()
    p = Pipeline(m, 1)
    p.stage(a=0)
    p.stage(a=None)
    with pytest.raises(AttributeError, match="expected a value of stage 2, got 'a'"):
        p.a  # noqa: B018
    Fragment.get(m, None)


def random_value(width: int) -> int:
    """Any bit length is as likely as any other; runs of ones and single ones are frequent."""
    value = random.getrandbits(width) >> random.randrange(width)
    ones = (1 << random.randint(0, width)) - 1
    return random.choice([value, ones, ones ^ value >> 20, 1 << random.randrange(width), 1 << width - 1])


def drive(dut: Any, width: int) -> tuple[int, int, int]:
    value, amount, exponent = random_value(width), random.randrange(64), random.randint(-1900, 1900)
    dut.value.value = value
    dut.amount.value = amount
    dut.exponent.value = exponent
    return value, amount, exponent


@cocotb.test()
async def functions(dut: Any) -> None:
    width = int(parameter("width"))
    for _ in range(2000):
        value, amount, exponent = drive(dut, width)
        await Timer(1, "ns")
        as_signed = unpack(signed(width), value)
        assert unpack(unsigned(6), int(dut.length.value)) == value.bit_length()
        assert int(dut.magnitude.value) == abs(as_signed)
        assert int(dut.shifted.value) == twin.rshift(value, amount)
        assert unpack(signed(width), int(dut.shifted_signed.value)) == twin.rshift(as_signed, amount)
        got = int(dut.norm_mantissa.value), unpack(signed(EXP_BITS), int(dut.norm_exponent.value))
        assert got == twin.norm16(value, exponent), f"norm16({value:#x}, {exponent})"


@cocotb.test()
async def steps_with_pauses(dut: Any) -> None:
    """A stage is a cycle with ``enable``; ``valid`` stays with its value."""
    width = int(parameter("width"))
    dut.enable.value = 1
    dut.valid.value = 0
    await start(dut, STAGES)
    expected: list[tuple[bool, int, int]] = []
    for _ in range(1000):
        value, _, exponent = drive(dut, width)
        valid, enable = random.random() < 0.7, random.random() < 0.7
        dut.valid.value = int(valid)
        dut.enable.value = int(enable)
        await RisingEdge(dut.clk)
        if enable:
            expected.append((valid, value, exponent))
        await Timer(1, "ns")
        if len(expected) >= STAGES:
            valid, value, exponent = expected[-STAGES]
            assert int(dut.late_valid.value) == valid
            got = int(dut.late_mantissa.value), unpack(signed(EXP_BITS), int(dut.late_exponent.value))
            assert got == twin.norm16(value, exponent)
