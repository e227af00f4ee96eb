"""Headers at every limit against the rules in Python."""

import random

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from moe_hw.arch import Arch
from moe_hw.bridge import Opcode, Status, largest_count
from rtl_gen.registers import CSR_ADDR_BITS
from rtl_gen.request_check import HEADER_LAYOUT, RequestCheck
from sim.bench import streams
from sim.bench.runner import run_bench
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


def test_request_check() -> None:
    run_bench(RequestCheck(ARCH), __name__)
