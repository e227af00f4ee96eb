"""The sequencer: order of vectors, tags and planes against the loop nest; no bubble when nothing is missing."""

import random

import cocotb
import pytest
from cocotb.triggers import ClockCycles, ReadOnly, ReadWrite, RisingEdge

from moe_hw.arch import PLANES_PER_PASS, TILES_PER_SCALE_BEAT, Arch, passes_of
from rtl_gen.accumulate import FRACTION, TAG_LEAD, tag_layout
from rtl_gen.array import LATENCY
from rtl_gen.row import command_layout
from rtl_gen.sequencer import RELEASE_DELAY, Activity, Sequencer
from rtl_gen.types import Kind, job_layout, layer_layout, slot_layout
from rtl_gen.vector_pipeline import COMMAND_STAGE
from sim.bench import streams
from sim.bench.runner import parameter, run_bench

ARCHES = {
    "one_slot": Arch(columns=4, max_tokens=1, slots=1, expert_beats=64, vector_blocks=64),
    "small": Arch(columns=8, max_tokens=16, slots=4, expert_beats=64, vector_blocks=256),
}
LAYER = {
    "input_blocks": 2, "inter_blocks": 1, "shared_blocks": 3, "elements": 0,
    "router_shift": -2, "up_shift": 3, "down_shift": 20, "shared_up_shift": 5, "shared_down_shift": 7,
}  # fmt: skip
LONG_LAYER = {**LAYER, "input_blocks": 16, "inter_blocks": 15, "shared_blocks": 13}
"""A group takes longer than its results take to arrive."""


@pytest.mark.parametrize("arch", list(ARCHES))
def test_sequencer(arch: str) -> None:
    run_bench(Sequencer(ARCHES[arch]), __name__, arch=arch)


def bench_arch() -> Arch:
    return ARCHES[parameter("arch")]


class Job:
    """A random job: its payload, and what lies in its half of the slot table and the vector buffer."""

    def __init__(self, number: int, **given: int):
        arch = bench_arch()
        kind = given.pop("kind", random.choice(list(Kind)))
        bits = 16 if kind == Kind.ROUTER else random.choice([2, 3, 4, 5, 6, 8])
        self.payload = {
            "kind": kind.value, "shared": int(kind != Kind.ROUTER and random.randrange(2)), "half": number & 1,
            "slots": random.randint(1, arch.slots), "groups": random.randint(1, 5), "bits": bits, **given,
        }  # fmt: skip
        self.slots = [
            {
                "token": random.randrange(arch.max_tokens),
                "unused": random.randrange(2),
                "weight": {"mantissa": random.getrandbits(16), "exponent": random.randint(-2048, 2047),
                           "negative": random.randrange(2)},
            }
            for _ in range(arch.slots)
        ]
        self.vector_exponent = [random.randint(100, 2000) for _ in range(arch.slots)]
        self.block_exponent = [random.randint(-100, 100) for _ in range(arch.vector_blocks // 2)]

    def vectors(self, layer: dict, token_exponent: list[int]) -> list[dict]:
        """What the array should multiply, in order."""
        job, arch = self.payload, bench_arch()
        kind, slots = Kind(job["kind"]), job["slots"]
        prefix = "shared_" if job["shared"] else ""
        blocks, halves = layer["input_blocks"], 1
        planes = passes_of(job["bits"])
        passes = len(planes)
        if kind == Kind.ROUTER:
            shift, halves = layer["router_shift"], 2
        elif kind == Kind.UP:
            shift = layer[prefix + "up_shift"]
        else:
            blocks, shift = layer["shared_blocks" if job["shared"] else "inter_blocks"], layer[prefix + "down_shift"]
        out = []
        for tile in range(job["groups"] * blocks):
            group, block = divmod(tile, blocks)
            for number in range(passes):
                for slot in range(slots):
                    of, base = self.slots[slot], self.vector_exponent[slot]
                    for half in range(halves):
                        place = slot * blocks * halves + block
                        left = shift + 4 * (passes - 1 - number) + (8 if halves == 2 and half == 0 else 0)
                        last_tile = tile == job["groups"] * blocks - 1
                        end = number == passes - 1 and slot == slots - 1 and half == halves - 1
                        out.append({
                            "x_address": job["half"] * arch.vector_blocks // 2 + place + half * blocks,
                            "swap": int(slot == 0 and half == 0),
                            "decode": int(kind != Kind.ROUTER and layer["elements"]),
                            "kind": kind.value, "shared": job["shared"], "slot": slot, "group": group, "of": of,
                            "base_exponent": base, "token_exponent": token_exponent[of["token"]],
                            "last": int(group == job["groups"] - 1 and slot == slots - 1),
                            "first": int(block == 0 and number == 0 and half == 0),
                            "complete": int(block == blocks - 1 and number == passes - 1 and half == halves - 1),
                            "shift": FRACTION - left + min(63, base - self.block_exponent[place]),
                            "scale_index": tile % TILES_PER_SCALE_BEAT,
                            "scale_pop": int(end and (last_tile or tile % TILES_PER_SCALE_BEAT == 3)),
                            "number": number, "planes": planes[number],
                        })  # fmt: skip
        return out


class Surroundings:
    """Slot table, exponents and expert buffer of the sequencer; a half that is released gets the next job's vectors."""

    def __init__(self, dut, jobs: list[Job], layer: dict, weights: streams.Pattern, drain: streams.Pattern):
        self.dut, self.jobs, self.layer = dut, jobs, layer
        self.token_exponent = [random.randint(100, 120) for _ in range(bench_arch().max_tokens)]
        self.weights, self.drain = weights(), drain()
        self.taken: list[tuple[int, dict, dict]] = []  # cycle of the command, command and tag of every vector
        self.history: list[dict] = []  # commands
        self.activity: list[Activity] = []
        self.accepted: list[int] = []  # cycles in which a job was taken
        self.released: list[int] = []  # cycles
        self.pops = 0
        # The matrix behind the last job's has been asked for, too.
        self.bits = [job.payload["bits"] for job in jobs] + [random.choice([2, 3, 4, 5, 6, 8])]
        self.bits_ahead = list(self.bits)
        self.serving = cocotb.start_soon(self.serve())

    def of_half(self, half: int) -> Job:
        """The last job whose vectors have been loaded into a half."""
        loaded = [job for job in self.jobs[: len(self.released) + 2] if job.payload["half"] == half]
        return loaded[-1] if loaded else self.jobs[0]

    async def serve(self) -> None:
        dut, arch = self.dut, bench_arch()
        results = 0
        while True:
            await ReadWrite()
            dut.beat_ready.value = int(next(self.weights))
            dut.result_taken.value = int(results > 0 and next(self.drain))
            dut.bits__valid.value = int(bool(self.bits_ahead) and random.random() < 0.5)
            dut.bits__payload.value = self.bits_ahead[0] if self.bits_ahead else 0
            await ReadOnly()
            if int(dut.bits__valid.value) and int(dut.bits__ready.value):
                self.bits_ahead.pop(0)
            cycle = len(self.history)
            results -= int(dut.result_taken.value)
            self.pops += int(dut.beat_pop.value)
            slot = self.of_half(int(dut.slot__half.value)).slots[int(dut.slot__index.value) % arch.slots]
            half, address = divmod(int(dut.exponents__address.value), arch.vector_blocks // 2)
            block_exponent = self.of_half(half).block_exponent[address]
            vector = int(dut.exponents__slot.value) % arch.slots
            vector_exponent = self.of_half(int(dut.exponents__half.value)).vector_exponent[vector]
            token_exponent = self.token_exponent[int(dut.exponents__token.value) % arch.max_tokens]
            self.history.append(streams.unpack(command_layout(arch), int(dut.command.value)))
            self.activity.append(Activity(int(dut.activity.value)))
            if int(dut.tag_valid.value):
                tag = streams.unpack(tag_layout(arch), int(dut.tag.value))
                issued = cycle - LATENCY + TAG_LEAD
                self.taken.append((issued, self.history[issued], tag))
                results += tag["complete"]
                assert results <= arch.slots
            if int(dut.jobs__valid.value) and int(dut.jobs__ready.value):
                self.accepted.append(cycle)
            if int(dut.released.value):
                self.released.append(cycle)
            await RisingEdge(dut.clk)
            dut.slot__data.value = streams.pack(slot_layout(arch), slot)
            dut.exponents__block_exponent.value = block_exponent
            dut.exponents__token_exponent.value = token_exponent
            dut.exponents__vector_exponent.value = vector_exponent

    async def send_jobs(self, pauses: tuple[int, ...] = (0,)) -> None:
        """A job is offered when its half is free, or a while later."""
        for number, job in enumerate(self.jobs):
            while len(self.released) < number - 1:
                await RisingEdge(self.dut.clk)
            for _ in range(random.choice(pauses)):
                await RisingEdge(self.dut.clk)
            await streams.send(self.dut, "jobs", job_layout(bench_arch()), [job.payload])

    def check(self) -> None:
        vectors = [job.vectors(self.layer, self.token_exponent) for job in self.jobs]
        expected = [vector for job in vectors for vector in job]
        for number, ((_, command, tag), want) in enumerate(zip(self.taken, expected, strict=True)):
            got = {**tag["result"], **{name: tag[name] for name in tag if name != "result"}}
            got.update(x_address=command["x_address"], swap=command["swap"], decode=command["decode"])
            assert got == {name: want[name] for name in got}, f"vector {number}"
        self.check_planes([want for want in expected if want["swap"]])
        end = -1
        for number, (job, cycle) in enumerate(zip(vectors, self.released, strict=True)):
            end += len(job)
            assert cycle == self.taken[end][0] - COMMAND_STAGE + RELEASE_DELAY, f"release of job {number}"

    def check_planes(self, tiles: list[dict]) -> None:
        """Each swap follows exactly its own pass's planes, in order, the first of the first pass signed."""
        loads: list[dict] = []
        swaps = first = 0
        for command in self.history:
            if command["swap"]:
                want = tiles[swaps]
                assert len(loads) == first + want["planes"], "not all planes are loaded, or the next's are"
                for index, plane in enumerate(loads[first:]):
                    assert plane["plane_address"] == (first + index) % bench_arch().expert_beats
                    assert plane["load_first"] == (index == 0)
                    assert plane["load_signed"] == (want["number"] == 0)
                swaps += 1
                first = len(loads)
            if command["load"]:
                loads.append(command)
        assert swaps == len(tiles)


async def run_jobs(dut, jobs: list[Job], weights: str = "always", drain: str = "always", layer: dict = LAYER,
                   pauses: tuple[int, ...] = (0,)) -> Surroundings:
    dut.layer.value = streams.pack(layer_layout(), layer)
    around = Surroundings(dut, jobs, layer, streams.PATTERNS[weights], streams.PATTERNS[drain])
    sending = cocotb.start_soon(around.send_jobs(pauses))
    try:
        while len(around.released) < len(jobs):
            await RisingEdge(dut.clk)
            if around.serving.done():
                around.serving.result()
        await ClockCycles(dut.clk, LATENCY + COMMAND_STAGE + 10)
    finally:
        sending.cancel()
        around.serving.cancel()
    around.check()
    return around


def random_jobs(count: int, **given: int) -> list[Job]:
    return [Job(number, **given) for number in range(count)]


async def begin(dut) -> None:
    for name in ("jobs__valid", "bits__valid", "beat_ready", "result_taken"):
        getattr(dut, name).value = 0
    await streams.start(dut)


@cocotb.test(timeout_time=3, timeout_unit="ms")
@cocotb.parametrize(weights=list(streams.PATTERNS), drain=list(streams.PATTERNS))
async def loop_nest(dut, weights, drain):
    """Jobs of all kinds, at once and with pauses between them."""
    await begin(dut)
    for elements, pauses in enumerate(((0,), (0, 1, 2, 80))):
        await run_jobs(dut, random_jobs(4), weights, drain, {**LAYER, "elements": elements}, pauses=pauses)
        await streams.reset(dut)  # planes are counted from the reset


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def no_bubble(dut):
    """With as many vectors as planes, a vector starts in every cycle, through groups, passes and jobs of all kinds."""
    await begin(dut)
    slots = bench_arch().slots
    if slots < PLANES_PER_PASS:
        return
    kinds = [Kind.UP, *random.sample(list(Kind), 3), Kind.DOWN]
    bits = {kind: random.choice([4, 8]) for kind in kinds} | {Kind.ROUTER: 16}
    jobs = [Job(number, kind=kind, slots=slots, bits=bits[kind]) for number, kind in enumerate(kinds)]
    around = await run_jobs(dut, jobs, layer=LONG_LAYER)
    busy = [cycle for cycle, what in enumerate(around.activity) if what == Activity.BUSY]
    assert len(busy) == len(around.taken)
    assert busy == list(range(busy[0], busy[-1] + 1))


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def the_next_planes_are_loaded(dut):
    """Before there is a job, and after one: the first vector of a job follows its arrival by a cycle."""
    await begin(dut)
    longest = 8 * LAYER["input_blocks"] * bench_arch().slots  # a job for the router: four passes of two halves
    jobs = random_jobs(3, groups=1)
    around = await run_jobs(dut, jobs, pauses=(longest + LATENCY + 32,))
    vectors = [vector for job in jobs for vector in job.vectors(LAYER, around.token_exponent)]
    planes = sum(vector["planes"] for vector in vectors if vector["swap"])
    assert around.pops == planes + passes_of(around.bits[-1])[0]
    for cycle in around.accepted:
        assert around.activity[cycle] == Activity.NO_JOB and around.activity[cycle + 1] == Activity.BUSY


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def what_it_waits_for(dut):
    """Weights, or room for results, or a job; a result that leaves lets one vector follow."""
    await begin(dut)
    slots = bench_arch().slots
    dut.layer.value = streams.pack(layer_layout(), LAYER)
    jobs = random_jobs(1, kind=Kind.UP, shared=0, slots=slots, groups=3)
    never = iter(lambda: False, True)
    around = Surroundings(dut, jobs, LAYER, lambda: never, lambda: never)
    await ClockCycles(dut.clk, 5)
    assert around.activity[-1] == Activity.NO_JOB
    sending = cocotb.start_soon(around.send_jobs())
    await ClockCycles(dut.clk, 5)
    assert around.activity[-1] == Activity.WAIT_WEIGHTS
    around.weights = streams.always()
    await ClockCycles(dut.clk, LATENCY + 8 * slots + 40)
    assert around.activity[-1] == Activity.WAIT_RESULTS
    assert sum(tag["complete"] for _, _, tag in around.taken) == slots
    around.drain = streams.always()
    while len(around.released) < 1:
        await RisingEdge(dut.clk)
    assert around.activity[-1] == Activity.NO_JOB
    await sending
    around.serving.cancel()


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def reset_in_flight(dut):
    """In any job and between them, with vectors under way and results that nobody has taken."""
    await begin(dut)
    for _ in range(6):
        working = cocotb.start_soon(run_jobs(dut, random_jobs(3), "always", "sometimes"))
        await ClockCycles(dut.clk, random.randint(1, 350))
        await streams.interrupt(dut, working, "jobs__valid", "bits__valid", "beat_ready", "result_taken")
        await run_jobs(dut, random_jobs(2))
        await streams.reset(dut)  # the planes of what is interrupted start at address 0 again
