"""The sequencer: order of vectors, tags and planes against the loop nest; no bubble when nothing is missing."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, ReadWrite, RisingEdge

from moe_hw.arch import PLANES_PER_PASS, ROWS, TILES_PER_SCALE_BEAT, Arch
from rtl_gen.accumulate import FRACTION, tag_layout
from rtl_gen.array import LATENCY
from rtl_gen.row import command_layout
from rtl_gen.sequencer import Activity, Sequencer
from rtl_gen.types import Kind, job_layout, layer_layout, slot_layout
from sim.bench import streams
from sim.bench.runner import parameter, run_bench

LAYER = {
    "tokens": 3, "hidden_blocks": 2, "inter_blocks": 1, "shared_blocks": 3, "experts": 5, "shared_gate": 1,
    "passes": 1, "shared_passes": 2, "router_passes": 4,
    "router_shift": -2, "up_shift": 3, "down_shift": 20, "shared_up_shift": 5, "shared_down_shift": 7,
}  # fmt: skip


def sizes(columns: int) -> Arch:
    return Arch(columns=columns, max_tokens=4, expert_beats=64, token_blocks=64, data_bits=32)


class Surroundings:
    """Slot table, exponents and expert buffer as the sequencer sees them."""

    def __init__(self, dut, arch: Arch, weights: streams.Pattern, drain: streams.Pattern):
        self.dut, self.arch = dut, arch
        self.tokens = {(parity, slot): random.randrange(3) for parity in (0, 1) for slot in range(4)}
        self.block_exponent = [random.randint(-100, 100) for _ in range(arch.token_blocks)]
        self.token_exponent = [random.randint(100, 120) for _ in range(4)]
        self.hidden_exponent = [random.randint(100, 2000) for _ in range(4)]
        self.weights, self.drain = weights(), drain()
        self.taken: list[tuple[dict, dict]] = []  # (command, tag) of every vector
        self.loads: list[tuple[int, int]] = []  # (cycle, command index)
        self.activity: list[Activity] = []
        self.serving = cocotb.start_soon(self.serve())

    async def serve(self) -> None:
        dut = self.dut
        history: list[dict] = []
        results = 0
        while True:
            await ReadWrite()
            dut.beat_ready.value = int(next(self.weights))
            dut.result_taken.value = int(results > 0 and next(self.drain))
            await ReadOnly()
            results -= int(dut.result_taken.value)
            slot = self.tokens[int(dut.slot__parity.value), int(dut.slot__index.value) % 4]
            address = int(dut.exponents__address.value)
            token, vector = int(dut.exponents__token.value) % 4, int(dut.exponents__slot.value) % 4
            hidden = int(dut.exponents__hidden.value)
            history.append(streams.unpack(command_layout(self.arch), int(dut.command.value)))
            self.activity.append(Activity(int(dut.activity.value)))
            if int(dut.tag_valid.value):
                tag = streams.unpack(tag_layout(self.arch), int(dut.tag.value))
                self.taken.append((history[len(history) - 1 - LATENCY], tag))
                results += tag["complete"]
                assert results <= self.arch.max_tokens
            self.history = history
            await RisingEdge(dut.clk)
            dut.slot__data.value = streams.pack(slot_layout(self.arch), {"token": slot})
            dut.exponents__block_exponent.value = self.block_exponent[address]
            dut.exponents__token_exponent.value = self.token_exponent[token]
            dut.exponents__vector_exponent.value = (
                self.hidden_exponent[vector] if hidden else self.token_exponent[token]
            )


def expected_phase(arch: Arch, around: Surroundings, job: dict, kind: Kind) -> list[dict]:
    """What the vectors of a phase should be, in order."""
    layer = LAYER
    stride = layer["shared_blocks"] if job["shared"] else layer["inter_blocks"]
    prefix = "shared_" if job["shared"] else ""
    inputs = layer["tokens"] * layer["hidden_blocks"]
    if kind == Kind.ROUTER:
        groups, blocks = -(-(layer["experts"] + 1) // arch.columns), layer["hidden_blocks"]
        passes, shift, halves = layer["router_passes"], layer["router_shift"], 2
    elif kind == Kind.UP:
        groups, blocks = 2 * ROWS * stride // arch.columns, layer["hidden_blocks"]
        passes, shift, halves = layer[prefix + "passes"], layer[prefix + "up_shift"], 1
    else:
        groups, blocks = ROWS * layer["hidden_blocks"] // arch.columns, stride
        passes, shift, halves = layer[prefix + "passes"], layer[prefix + "down_shift"], 1
    out, tile = [], 0
    for group in range(groups):
        for block in range(blocks):
            for number in range(passes):
                for slot in range(job["slots"]):
                    token = around.tokens[job["parity"], slot]
                    for half in range(halves):
                        if kind == Kind.DOWN:
                            place = exponent_place = 2 * inputs + slot * stride + block
                            base = around.hidden_exponent[slot]
                        else:
                            exponent_place = token * layer["hidden_blocks"] + block
                            place = exponent_place + half * inputs
                            base = around.token_exponent[token]
                        left = shift + 4 * (passes - 1 - number) + (8 if halves == 2 and half == 0 else 0)
                        last_tile = tile == groups * blocks - 1
                        end = number == passes - 1 and slot == job["slots"] - 1 and half == halves - 1
                        out.append({
                            "x_address": place,
                            "swap": int(slot == 0 and half == 0),
                            "kind": kind.value, "shared": job["shared"], "parity": job["parity"],
                            "slot": slot, "token": token, "group": group,
                            "base_exponent": base, "token_exponent": around.token_exponent[token],
                            "last": int(group == groups - 1 and slot == job["slots"] - 1),
                            "first": int(block == 0 and number == 0 and half == 0),
                            "complete": int(block == blocks - 1 and number == passes - 1 and half == halves - 1),
                            "shift": FRACTION - left + min(63, base - around.block_exponent[exponent_place]),
                            "scale_index": tile % TILES_PER_SCALE_BEAT,
                            "scale_pop": int(end and (last_tile or tile % TILES_PER_SCALE_BEAT == 3)),
                        })  # fmt: skip
                        out[-1]["number"] = number
                tile += number == passes - 1
    return out


async def run_jobs(dut, arch: Arch, jobs: list[dict], weights: streams.Pattern, drain: streams.Pattern) -> Surroundings:
    dut.layer.value = streams.pack(layer_layout(), LAYER)
    dut.hidden_ready.value = 0
    around = Surroundings(dut, arch, weights, drain)
    expected = []
    sending = cocotb.start_soon(streams.send(dut, "jobs", job_layout(arch), jobs))
    try:
        for job in jobs:
            for kind in [Kind.ROUTER] if job["router"] else [Kind.UP, Kind.DOWN]:
                if kind == Kind.DOWN:
                    for _ in range(random.randrange(60)):
                        await RisingEdge(dut.clk)
                    dut.hidden_ready.value = 1
                    await RisingEdge(dut.clk)
                    dut.hidden_ready.value = 0
                expected += expected_phase(arch, around, job, kind)
                while len(around.taken) < len(expected):
                    await RisingEdge(dut.clk)
    finally:
        sending.cancel()
        around.serving.cancel()
    for number, ((command, tag), want) in enumerate(zip(around.taken, expected, strict=True)):
        got = {**tag["result"], **{name: tag[name] for name in tag if name != "result"}}
        got.update(x_address=command["x_address"], swap=command["swap"])
        assert got == {name: want[name] for name in got}, f"vector {number}"
    check_planes(arch, around, [want for want in expected if want["swap"]])
    return around


def check_planes(arch: Arch, around: Surroundings, tiles: list[dict]) -> None:
    """Each swap follows exactly its own pass's planes, in order, the first of the first pass signed."""
    loads: list[dict] = []
    swaps = 0
    for command in around.history:
        if command["swap"]:
            want = tiles[swaps]
            planes = loads[PLANES_PER_PASS * swaps : PLANES_PER_PASS * (swaps + 1)]
            assert len(loads) == PLANES_PER_PASS * (swaps + 1), "not all planes are loaded, or the next's are"
            for index, plane in enumerate(planes):
                assert plane["plane_address"] == (PLANES_PER_PASS * swaps + index) % arch.expert_beats
                assert plane["load_first"] == (index == 0)
                assert plane["load_signed"] == (want["number"] == 0)
            swaps += 1
        if command["load"]:
            loads.append(command)
    assert swaps == len(tiles)


ROUTER_JOB = {"router": 1, "shared": 0, "parity": 0, "slots": 3}
SHARED_JOB = {"router": 0, "shared": 1, "parity": 1, "slots": 3}
EXPERT_JOB = {"router": 0, "shared": 0, "parity": 0, "slots": 1}


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(weights=list(streams.PATTERNS), drain=list(streams.PATTERNS))
async def loop_nest(dut, weights, drain):
    await streams.start(dut)
    jobs = [ROUTER_JOB, SHARED_JOB, EXPERT_JOB, {**EXPERT_JOB, "parity": 1, "slots": 4}]
    await run_jobs(dut, sizes(int(parameter("columns"))), jobs, streams.PATTERNS[weights], streams.PATTERNS[drain])


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def four_slots_hide_the_loads(dut):
    """With as many vectors as planes, the array starts a vector in every cycle of a phase but the first four."""
    await streams.start(dut)
    around = await run_jobs(dut, sizes(int(parameter("columns"))), [{**EXPERT_JOB, "slots": 4}],
                            streams.always, streams.always)
    activity = around.activity
    busy = [cycle for cycle, what in enumerate(activity) if what == Activity.BUSY]
    phase_end = next(cycle for cycle in busy if activity[cycle + 1] != Activity.BUSY)
    assert phase_end - busy[0] + 1 == sum(what == Activity.BUSY for what in activity[: phase_end + 1])
    assert activity[: busy[0]].count(Activity.WAIT_WEIGHTS) <= PLANES_PER_PASS + 1


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def reset_in_flight(dut):
    """In any phase of a job and between them, with vectors under way and results that nobody has taken."""
    arch = sizes(int(parameter("columns")))
    await streams.start(dut)
    for _ in range(8):
        jobs = random.choice([[ROUTER_JOB, EXPERT_JOB], [EXPERT_JOB, ROUTER_JOB]])
        working = cocotb.start_soon(run_jobs(dut, arch, jobs, streams.always, streams.PATTERNS["sometimes"]))
        await ClockCycles(dut.clk, random.randint(1, 350))
        await streams.interrupt(dut, working, "jobs__valid", "hidden_ready", "beat_ready", "result_taken")
        await run_jobs(dut, arch, [EXPERT_JOB, ROUTER_JOB], streams.always, streams.always)
        await streams.reset(dut)  # the planes of what is interrupted start at address 0 again


@pytest.mark.parametrize("columns", [4, 8])
def test_sequencer(columns: int) -> None:
    run_bench(Sequencer(sizes(columns)), __name__, columns=columns)
