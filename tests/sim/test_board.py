"""The simulated board with a small stand-in for the accelerator."""

from __future__ import annotations

import _thread
import threading
import time

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

import boards
from moe_hw.arch import Arch
from moe_hw.errors import DeviceError, DeviceTimeout
from rtl_gen.emit import to_verilog
from sim.board import ProtocolViolation, SimulatedBoard
from sim.build import build
from sim.dram import ideal_reader

BURST = 16
SOURCE, TARGET, WORDS, MODE, TAIL, HEAD, ERRORS, SUM = range(0, 32, 4)
COPY, ADD, CROSS_4096, NO_LAST, UNSTABLE = range(5)


class Mover(wiring.Component):
    """A stand-in with the ports of the accelerator: each write of TAIL starts one move of WORDS bus words.

    COPY copies them in bursts, less the bytes of each word that bits 8 and up of MODE name; ADD streams them and adds
    up their low 32 bits. The other modes break a rule of AXI.
    """

    def __init__(self, data_bits: int, addr_bits: int = 32):
        self.word_bytes = data_bits // 8
        lite = {
            "awaddr": In(8), "awvalid": In(1), "awready": Out(1), "wdata": In(32), "wstrb": In(4), "wvalid": In(1),
            "wready": Out(1), "bresp": Out(2), "bvalid": Out(1), "bready": In(1), "araddr": In(8), "arvalid": In(1),
            "arready": Out(1), "rdata": Out(32), "rresp": Out(2), "rvalid": Out(1), "rready": In(1),
        }  # fmt: skip
        full = {
            "araddr": Out(addr_bits), "arlen": Out(8), "arsize": Out(3), "arburst": Out(2), "arvalid": Out(1),
            "arready": In(1), "rdata": In(data_bits), "rresp": In(2), "rlast": In(1), "rvalid": In(1),
            "rready": Out(1), "awaddr": Out(addr_bits), "awlen": Out(8), "awsize": Out(3), "awburst": Out(2),
            "awvalid": Out(1), "awready": In(1), "wdata": Out(data_bits), "wstrb": Out(data_bits // 8),
            "wlast": Out(1), "wvalid": Out(1), "wready": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1),
        }  # fmt: skip
        super().__init__(
            {
                "s_axil": Out(wiring.Signature(lite)),
                "m_axi": Out(wiring.Signature(full)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lite, axi = self.s_axil, self.m_axi
        registers = [Signal(32, name=f"register_{index}") for index in range(8)]
        source, target, words, mode, tail, head, errors, total = registers

        m.d.comb += lite.awready.eq(lite.awvalid & lite.wvalid & ~lite.bvalid)
        m.d.comb += [lite.wready.eq(lite.awready), lite.arready.eq(~lite.rvalid)]
        with m.If(lite.bready):
            m.d.sync += lite.bvalid.eq(0)
        with m.If(lite.rready):
            m.d.sync += lite.rvalid.eq(0)
        with m.If(lite.awready):
            m.d.sync += [lite.bvalid.eq(1), lite.bresp.eq(0)]
            with m.Switch(lite.awaddr):
                for index, register in enumerate(registers[:5]):
                    with m.Case(4 * index):
                        m.d.sync += register.eq(lite.wdata)
                with m.Default():
                    m.d.sync += lite.bresp.eq(2)
        with m.If(lite.arvalid & lite.arready):
            m.d.sync += [lite.rvalid.eq(1), lite.rresp.eq(0)]
            with m.Switch(lite.araddr):
                for index, register in enumerate(registers):
                    with m.Case(4 * index):
                        m.d.sync += lite.rdata.eq(register)
                with m.Default():
                    m.d.sync += lite.rresp.eq(3)

        m.submodules.buffer = buffer = Memory(shape=8 * self.word_bytes, depth=BURST, init=[])
        write_port, read_port = buffer.write_port(), buffer.read_port(domain="comb")
        pause, last = Signal(), Signal()
        m.d.sync += pause.eq(~pause)
        done, index, asked, count = Signal(32), Signal(range(BURST)), Signal(32), Signal(range(BURST + 1))
        left = Signal(32)
        size = (self.word_bytes - 1).bit_length()
        m.d.comb += [
            left.eq(words - done),
            count.eq(BURST),
            axi.arsize.eq(size), axi.awsize.eq(size), axi.arburst.eq(1), axi.awburst.eq(1),
            axi.awlen.eq(count - 1), axi.awaddr.eq(target + (done << size)),
            axi.wdata.eq(read_port.data), axi.wstrb.eq(~mode[8:].as_signed()),
            last.eq(index == count - 1), axi.wlast.eq(last & (mode[:8] != NO_LAST)),
            read_port.addr.eq(index), write_port.addr.eq(index), write_port.data.eq(axi.rdata),
            axi.arlen.eq(count - 1), axi.araddr.eq(source + (done << size)),
            self.busy.eq(head != tail),
        ]  # fmt: skip
        with m.If(left < BURST):
            m.d.comb += count.eq(left)
        with m.If(axi.rvalid & axi.rready):
            m.d.sync += [index.eq(index + 1), errors.eq(errors | axi.rresp)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [done.eq(0), asked.eq(0), index.eq(0)]
                with m.If(self.busy):
                    m.d.sync += [errors.eq(0), total.eq(0)]
                    with m.Switch(mode[:8]):
                        with m.Case(COPY, NO_LAST):
                            m.next = "ADDRESS"
                        with m.Case(ADD):
                            m.next = "STREAM"
                        with m.Case(CROSS_4096):
                            m.next = "CROSS"
                        with m.Case(UNSTABLE):
                            m.next = "UNSTABLE"
            with m.State("ADDRESS"):
                m.d.comb += axi.arvalid.eq(1)
                with m.If(axi.arready):
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += [axi.rready.eq(pause), write_port.en.eq(axi.rvalid)]
                with m.If(axi.rvalid & axi.rready & axi.rlast):
                    m.d.sync += index.eq(0)
                    m.next = "WRITE_ADDRESS"
            with m.State("WRITE_ADDRESS"):
                m.d.comb += axi.awvalid.eq(1)
                with m.If(axi.awready):
                    m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += axi.wvalid.eq(1)
                with m.If(axi.wready):
                    m.d.sync += index.eq(index + 1)
                    with m.If(last):
                        m.d.sync += index.eq(0)
                        m.next = "RESPONSE"
            with m.State("RESPONSE"):
                m.d.comb += axi.bready.eq(pause)
                with m.If(axi.bvalid & axi.bready):
                    m.d.sync += [errors.eq(errors | axi.bresp), done.eq(done + count)]
                    m.next = "ADDRESS"
                    with m.If(left == count):
                        m.d.sync += head.eq(head + 1)
                        m.next = "IDLE"
            with m.State("STREAM"):
                m.d.comb += [
                    left.eq(words - asked), axi.araddr.eq(source + (asked << size)), axi.arvalid.eq(left != 0),
                    axi.rready.eq(1),
                ]  # fmt: skip
                with m.If(axi.arvalid & axi.arready):
                    m.d.sync += asked.eq(asked + count)
                with m.If(axi.rvalid):
                    m.d.sync += [total.eq(total + axi.rdata[:32]), done.eq(done + 1)]
                    with m.If(done == words - 1):
                        m.d.sync += head.eq(head + 1)
                        m.next = "IDLE"
            with m.State("CROSS"):
                m.d.comb += [axi.arvalid.eq(1), axi.araddr.eq(4096 - self.word_bytes), axi.arlen.eq(1)]
            with m.State("UNSTABLE"):
                m.d.sync += asked.eq(asked + 1)
                m.d.comb += [axi.arvalid.eq(1), axi.araddr.eq(asked << 6)]
        return m


ARCHS = {bits: Arch(columns=max(8, bits // 32), data_bits=bits) for bits in (32, 64, 128, 256, 512)}
BOARDS = {32: "ulx3s-85f", 512: "kv260"}


def make(bits: int) -> SimulatedBoard:
    board = boards.load_board(BOARDS.get(bits, "ulx3s-85f"))
    return SimulatedBoard(build(to_verilog(Mover(bits), "moe_hw"), ARCHS[bits]), ARCHS[bits], board)


@pytest.fixture
def device():
    with make(32) as device:
        yield device


def start(device: SimulatedBoard, mode: int, source: int, target: int, words: int) -> None:
    tail = device.csr_read(TAIL)
    for offset, value in ((SOURCE, source), (TARGET, target), (WORDS, words), (MODE, mode), (TAIL, tail + 1)):
        device.csr_write(offset, value)


@pytest.mark.parametrize("bits", ARCHS)
def test_copies_at_every_bus_width_and_under_back_pressure(bits: int) -> None:
    word = bits // 8
    rng = np.random.default_rng(bits)
    with make(bits) as device:
        for seed, (words, probability) in enumerate([(1, 0), (2, 0.3), (15, 0.9), (16, 0.5), (17, 0), (101, 0.7)]):
            device.set_stall(seed, probability)
            data = rng.integers(0, 256, words * word, np.uint8)
            guard = rng.integers(0, 256, word, np.uint8)
            device.write(4096, data)
            device.write(65536 + words * word, guard)
            start(device, COPY, 4096, 65536, words)
            device.run(1_000_000)
            assert device.csr_read(HEAD) == seed + 1 and device.csr_read(ERRORS) == 0
            assert np.array_equal(device.read(65536, words * word), data)
            assert np.array_equal(device.read(65536 + words * word, word), guard)
        assert device.read_words == device.write_words == 1 + 2 + 15 + 16 + 17 + 101


def test_same_run_takes_the_same_cycles() -> None:
    def cycles() -> int:
        with make(32) as device:
            device.set_stall(7, 0.5)
            start(device, COPY, 0, 65536, 333)
            device.run(100_000)
            return device.cycles

    assert cycles() == cycles()


@pytest.mark.parametrize("bits", BOARDS)
def test_streaming_comes_close_to_the_memory_and_never_beats_it(bits: int) -> None:
    with make(bits) as device:
        words = 65536
        values = np.arange(words * bits // 32, dtype=np.uint32)
        device.write(0, values)
        start(device, ADD, 0, 0, words)
        cycles = device.run(1_000_000)
        assert device.csr_read(SUM) == int(values[:: bits // 32].sum(dtype=np.uint32))
        ideal = max(ideal_reader(device.board, values.nbytes), words)
        assert ideal <= cycles <= ideal * 1.1


def test_two_accelerators_in_one_process_do_not_mix() -> None:
    with make(32) as narrow, make(64) as wide:
        for device, value in ((narrow, 3), (wide, 5)):
            device.write(0, np.full(64, value, np.uint8))
            start(device, COPY, 0, 4096, 4)
        narrow.run(1000), wide.run(1000)
        assert narrow.read(4096, 17).tolist() == [3] * 16 + [0]
        assert wide.read(4096, 33).tolist() == [5] * 32 + [0]


def test_stalls_slow_a_run_down_and_depend_on_the_seed() -> None:
    def cycles(seed: int, probability: float) -> int:
        with make(32) as device:
            start(device, COPY, 0, 65536, 333)
            device.set_stall(seed, probability)
            return device.run(100_000)

    assert cycles(1, 0.7) > 1.5 * cycles(1, 0)
    assert cycles(1, 0.7) != cycles(2, 0.7)


def test_bytes_without_strobe_are_not_written(device: SimulatedBoard) -> None:
    device.write(0, np.arange(1, 9, dtype=np.uint8))
    start(device, COPY | 0b0101 << 8, 0, 4096, 2)
    device.run(1000)
    assert device.read(4096, 8).tolist() == [0, 2, 0, 4, 0, 6, 0, 8]


@pytest.mark.parametrize("kind, fails", [("read", 0x1000 + 36), ("write", 0x8000 + 36)])
def test_faults_answer_slverr_in_their_range_only(device: SimulatedBoard, kind: str, fails: int) -> None:
    device.add_fault(kind, fails, 1)
    start(device, COPY, 0x1000, 0x8000, 9)
    device.run(10_000)
    assert device.csr_read(ERRORS) == 0
    start(device, COPY, 0x1000, 0x8000, 10)
    device.run(10_000)
    assert device.csr_read(ERRORS) == 2
    other_kind, above = (0x4000, fails), (fails + 4, 0x4000)
    if kind == "write":
        other_kind, above = other_kind[::-1], above[::-1]
    for source, target in (other_kind, above):
        start(device, COPY, source, target, 10)
        device.run(10_000)
        assert device.csr_read(ERRORS) == 0
    device.clear_faults()
    start(device, COPY, 0x1000, 0x8000, 10)
    device.run(10_000)
    assert device.csr_read(ERRORS) == 0


@pytest.mark.parametrize("source, target", [(32 << 20, 0), (0, 32 << 20), (0xFFFFF000, 0)])
def test_beyond_the_memory_answers_decerr(device: SimulatedBoard, source: int, target: int) -> None:
    start(device, COPY, source, target, 3)
    device.run(10_000)
    assert device.csr_read(ERRORS) == 3


def test_writes_are_visible_with_their_response_only(device: SimulatedBoard) -> None:
    device.write(0, np.full(64, 9, np.uint8))
    start(device, COPY, 0, 4096, 16)
    while device.write_words < 16:
        device.run(1)
        assert not device.read(4096, 64).any()
    waited = 0
    while not device.read(4096, 64).any():
        waited += device.run(1)
    assert waited > device.board.memory.controller_ns * device.board.clock_mhz / 1e3
    assert (device.read(4096, 64) == 9).all()


def test_dead_memory_leaves_the_command_pending_and_reset_recovers(device: SimulatedBoard) -> None:
    device.write(0, np.arange(64, dtype=np.uint8))
    start(device, COPY, 0, 4096, 16)
    device.run(3)
    device.set_dead()
    assert device.run(250_001) == 250_001 and device.busy
    assert device.csr_read(HEAD) == 0
    device.set_dead(False)
    device.reset()
    assert not device.busy and device.run(1000) == 1
    start(device, COPY, 0, 4096, 16)
    device.run(1000)
    assert np.array_equal(device.read(4096, 64), np.arange(64, dtype=np.uint8))


def test_reset_in_flight_drops_everything(device: SimulatedBoard) -> None:
    for passed in range(100):
        device.write(0, np.full(256, 3, np.uint8))
        start(device, COPY, 0, 4096, 64)
        device.run(passed)
        device.reset()
        device.write(4096, np.zeros(256, np.uint8))
        device.write(0, np.full(256, 7, np.uint8))
        start(device, COPY, 0, 8192, 64)
        device.run(10_000)
        assert not device.read(4096, 256).any()
        assert (device.read(8192, 256) == 7).all()


@pytest.mark.parametrize(
    "mode, message",
    [
        (CROSS_4096, "a burst crosses 4096 bytes"),
        (NO_LAST, "wlast is not on the last word of its burst"),
        (UNSTABLE, "AR: changed before it was taken"),
    ],
)
def test_a_breach_of_axi_is_named_and_forgotten_by_reset(device: SimulatedBoard, mode: int, message: str) -> None:
    device.set_stall(3, 0.5)
    start(device, mode, 0, 4096, 20)
    with pytest.raises(ProtocolViolation, match=message):
        device.run(1000)
    device.reset()
    assert device.run(10) == 1


def test_csr_errors(device: SimulatedBoard) -> None:
    with pytest.raises(DeviceError, match=r"CSR write at 0x40: expected OKAY, got SLVERR"):
        device.csr_write(0x40, 0)
    with pytest.raises(DeviceError, match=r"CSR read at 0x40: expected OKAY, got DECERR"):
        device.csr_read(0x40)
    device.set_stall(1, 1.0)
    with pytest.raises(DeviceTimeout, match="CSR read at 0x14: expected an answer, got none"):
        device.csr_read(HEAD)
    with pytest.raises(DeviceTimeout, match="CSR write at 0x0: expected an answer, got none"):
        device.csr_write(SOURCE, 1)
    device.set_stall(1, 0.0)
    device.reset()
    device.csr_write(SOURCE, -1)
    assert device.csr_read(SOURCE) == 0xFFFFFFFF


def test_host_accesses_stay_within_the_memory(device: SimulatedBoard) -> None:
    end = device.memory_bytes
    assert end == 32 << 20
    device.write(end - 4, np.array([1.5], np.float32))
    assert device.read(end - 4, 4).view(np.float32)[0] == 1.5
    device.write(end, np.zeros(0, np.uint8))
    for address, size in ((end - 3, 4), (-1, 1), (end + 1, 0), (0, end + 1), (0, -1)):
        with pytest.raises(DeviceError, match="expected addresses within the 33554432 bytes"):
            device.read(address, size)
    with pytest.raises(DeviceError, match="got 4 bytes at 0x1fffffe"):
        device.write(end - 2, np.array([1], np.uint32))


def test_a_closed_board_says_so(device: SimulatedBoard) -> None:
    device.close()
    device.close()
    for use in (lambda: device.run(1), lambda: device.csr_read(0), lambda: device.cycles, device.reset):
        with pytest.raises(DeviceError, match="closed"):
            use()


def test_ctrl_c_ends_a_run(device: SimulatedBoard) -> None:
    start(device, COPY, 0, 4096, 16)
    device.set_dead()
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        device.run(1 << 60)
    assert time.monotonic() - begin < 10
    timer.join()
    assert device.busy
