"""Headers at every limit against the rules in Python."""

import random

import cocotb
import pytest
from cocotb.triggers import ReadOnly, RisingEdge

from moe_hw.arch import Arch
from moe_hw.bridge import Opcode, Status, largest_count
from moe_hw.ddr3 import REGISTERS_ADDR_BITS, REGISTERS_BASE
from rtl_gen.registers import CSR_ADDR_BITS
from rtl_gen.request_check import HEADER_LAYOUT, RequestCheck
from sim.bench import streams
from sim.bench.runner import parameter, run_bench
from tests.moe_hw.peer import Peer

ARCH = Arch(addr_bits=24, burst_bytes=256)
LARGEST = largest_count(ARCH.burst_bytes)


def near(*limits: int) -> int:
    return max(0, random.choice(limits) + random.randint(-1, 1))


def random_header() -> dict[str, int]:
    anywhere = random.getrandbits(random.choice((24, 32)))
    address = random.choice((anywhere, near(1 << CSR_ADDR_BITS), near(1 << 24), 4 * random.randrange(64)))
    count = random.choice((near(0, 4, LARGEST, LARGEST - address % LARGEST), random.getrandbits(16)))
    return {"sequence": 0, "opcode": random.randrange(10), "count": count, "address": address}


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def random_headers(dut):
    await streams.start(dut)
    peer = Peer(bytearray(), [0] * (1 << CSR_ADDR_BITS - 2), ARCH.addr_bits, LARGEST)
    seen = set()
    for _ in range(20000):
        header = random_header()
        data = min(max(random.choice((0, 4, header["count"], near(header["count"]))), 0), 524)
        dut.header.value, dut.data.value = streams.pack(HEADER_LAYOUT, header), data
        await RisingEdge(dut.clk)
        await ReadOnly()
        opcode, count, address = header["opcode"], header["count"], header["address"]
        sound = peer._sound(opcode, count, address, bytes(data))
        assert int(dut.sound.value) == sound, (header, data)
        if sound:
            reachable = peer._do(opcode, count, address, bytes(data))[0] != Status.BAD_ADDRESS
            assert int(dut.reachable.value) == reachable, header
            seen.add((opcode, reachable))
        await RisingEdge(dut.clk)
    assert len(seen) == 2 * len(Opcode) - 3  # control requests reach wherever they say


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def memory_registers(dut):
    """Their words are within reach if the memory has any, and what lies around them is not."""
    await streams.start(dut)
    end = REGISTERS_BASE + (1 << REGISTERS_ADDR_BITS)
    for _ in range(2000):
        address = near(REGISTERS_BASE, end, 1 << CSR_ADDR_BITS, random.randrange(2 * end))
        header = {"sequence": 0, "opcode": Opcode.CSR_READ, "count": 4, "address": address}
        dut.header.value, dut.data.value = streams.pack(HEADER_LAYOUT, header), 0
        await RisingEdge(dut.clk)
        await ReadOnly()
        is_register = parameter("registers") == "True" and REGISTERS_BASE <= address < end
        expected = address % 4 == 0 and (address < 1 << CSR_ADDR_BITS or is_register)
        assert int(dut.reachable.value) == expected, hex(address)
        await RisingEdge(dut.clk)


@pytest.mark.parametrize("registers", [False, True])
def test_request_check(registers: bool) -> None:
    tests = "memory_registers" if registers else ""
    run_bench(RequestCheck(ARCH, registers), __name__, tests, registers=registers)
