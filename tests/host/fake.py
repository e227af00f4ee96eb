"""A device without hardware: it executes commands from its memory with the integer model.

It reads everything it needs from memory, word by word as ``docs/memory-image.md`` lays it out, and shares no packing
code with the driver: what the driver writes has to be right for the results to be.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from host.transport import Transport
from moe_hw.arch import ROWS, Arch, passes_of
from moe_hw.formats import FORMATS, ROUTER, QuantisedMatrix, Tokens, WeightFormat
from moe_hw.quantised import Correction, QuantisedExpert, QuantisedLayer
from moe_hw.registers import (
    COMMAND,
    COMMAND_MAGIC,
    COMPLETION,
    DEVICE_MAGIC,
    LAYER,
    LAYOUT_VERSION,
    Status,
    Waiting,
)
from moe_hw.spec import ExpertSpec, LayerSpec, RouterSpec, SharedSpec
from moe_hw.tables import GATES
from moe_hw.twins.combine import to_float32
from moe_hw.twins.layer import outputs, route_tokens
from moe_hw.twins.router import Routes
from tests.moe_hw.rules import refusal
from tests.moe_hw.scales import SCALES


class FakeTransport(Transport):
    """The fake device.

    Attributes:
        first_head: commands completed, as the CSR says after a reset.
        dead: it completes nothing any more.
        answers: status codes that the next commands end with instead of running, first one first.
        lost: completion records are not written.
        commands: tokens of each command executed.
        resets: resets so far.
    """

    def __init__(self, arch: Arch, memory_bytes: int = 1 << 20):
        self.arch = arch
        self.clock_mhz = 100.0
        self.memory_bytes = memory_bytes
        self.memory_bytes_per_cycle = 2.0
        self.memory = np.random.default_rng(0).integers(0, 256, memory_bytes, np.uint8)
        self.csrs = {
            "magic": DEVICE_MAGIC,
            "version": LAYOUT_VERSION,
            "config_hash_low": arch.hash & 0xFFFFFFFF,
            "config_hash_high": arch.hash >> 32,
            "state": 0,
        }
        self.first_head = 0
        self.dead = False
        self.lost = False
        self.answers: list[Status] = []
        self.commands: list[int] = []
        self.resets = 0
        self.closed = False
        self.bound = 0
        self.reset()

    def read(self, address: int, size: int) -> np.ndarray:
        assert address >= 0 and address + size <= self.memory_bytes
        return self.memory[address : address + size].copy()

    def write(self, address: int, data: np.ndarray) -> None:
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        assert address >= 0 and address + raw.size <= self.memory_bytes
        self.memory[address : address + raw.size] = raw

    def csr_read(self, name: str) -> int:
        return self.csrs[name]

    def csr_write(self, name: str, value: int) -> None:
        assert name in ("ring_base", "ring_mask", "tail")
        self.csrs[name] = value

    def reset(self) -> None:
        self.resets += 1
        self.csrs.update(ring_base=0, ring_mask=0, tail=self.first_head, head=self.first_head, status=0, state=0)

    def close(self) -> None:
        self.closed = True

    def wait(self, until_head: int, max_cycles: int) -> None:
        self.bound = max_cycles
        if self.dead:
            self.csrs["state"] = Waiting.WEIGHT_READ | Waiting.COMPUTE
            return
        assert (self.csrs["tail"] - self.csrs["head"]) & 0xFFFFFFFF <= self.csrs["ring_mask"] + 1
        while self.csrs["head"] != self.csrs["tail"]:
            self._execute()
            self.csrs["head"] = (self.csrs["head"] + 1) & 0xFFFFFFFF

    def _execute(self) -> None:
        place = self.csrs["head"] & self.csrs["ring_mask"]
        command = COMMAND.unpack(self._words(64 * (self.csrs["ring_base"] + place), COMMAND.size))
        counters = {"cycles": 1000}
        status = self.answers.pop(0) if self.answers else Status.OK
        if command["magic"] != COMMAND_MAGIC:
            status = Status.BAD_COMMAND
        if status == Status.OK:
            layer = LAYER.unpack(self._words(64 * command["layer"], LAYER.size))
            status = refusal(self.arch, layer, command)
        if status == Status.OK:
            counters |= self._run(command, layer)
        self.csrs["status"] = status
        if not self.lost:
            record = {"status": status, "sequence": self.csrs["head"], **counters}
            self.write(64 * command["completion"], COMPLETION.pack(record))

    def _run(self, command: dict[str, int], layer: dict[str, int]) -> dict[str, int]:
        count, blocks = command["tokens"], layer["input_blocks"]
        self.commands.append(count)
        unpacked = Unpacked(self, 64 * command["layer"], layer, command)
        lines = self.read(64 * command["input"], 128 * count * blocks).reshape(count, 2, blocks, 64)
        hi, lo = (np.ascontiguousarray(lines[:, half, :, :32]).view(np.int8) for half in (0, 1))
        exponents = np.ascontiguousarray(lines[..., 32:34]).view(np.int16)[..., 0]
        assert np.array_equal(exponents[:, 0], exponents[:, 1])
        tokens = Tokens(hi, lo, exponents[:, 0])
        choices = layer["top_k"] + bool(layer["shared_blocks"])
        room = 64 * count * (layer["top_k"] * layer["inter_blocks"] + layer["shared_blocks"])
        self.write(64 * command["hidden"], np.full(room, 0xA5, np.uint8))
        if layer["given_routes"]:
            record = self.read(64 * command["routes"], 8 * count * choices).view(np.uint32).reshape(count, choices, 2)
            routes = read_routes(record, bool(layer["shared_blocks"]))
        else:
            routes = route_tokens(unpacked, tokens)
        experts, weights = [routes.experts], [to_float32(routes.mantissas, routes.exponents)]
        if layer["shared_blocks"]:
            assert routes.shared is not None
            experts.append(np.full((count, 1), layer["experts"]))
            weights.append(to_float32(*routes.shared)[:, None])
        routing = np.zeros((count, choices, 2), np.uint32)
        routing[..., 0] = np.concatenate(experts, 1)
        routing[..., 1] = np.concatenate(weights, 1).view(np.uint32)
        output = outputs(unpacked, tokens, routes)
        self.write(64 * command["output"], output)
        self.write(64 * command["routing"], routing)
        tables = -(-4 * layer["experts"] // 64) * 64 * (1 + (layer["correction"] > 0))
        moved_in = COMMAND.size_bytes + LAYER.size_bytes + tables + 66 * count * blocks + unpacked.bytes_read
        moved_out = output.nbytes + routing.nbytes
        word = self.arch.data_bits // 8
        return {
            "cycles": 5000 + 7 * count,
            "busy": unpacked.busy(count),
            "read_words": moved_in // word,
            "write_words": moved_out // word,
            "experts_used": len(np.unique(routing[..., 0])),
        }

    def _words(self, address: int, count: int) -> np.ndarray:
        return self.read(address, 4 * count).view(np.uint32)


def read_routes(record: np.ndarray, shared: bool) -> Routes:
    """Given routes from their record, uint32 ``[T, choices, 2]``."""
    experts = record[..., 0].astype(np.int32).astype(np.int64)
    fraction, exponent = np.frexp(np.ascontiguousarray(record[..., 1]).view(np.float32))
    mantissas = (fraction * 65536).astype(np.int64)
    exponents = exponent.astype(np.int64) - 16
    if not shared:
        return Routes(experts, mantissas, exponents, None)
    return Routes(experts[:, :-1], mantissas[:, :-1], exponents[:, :-1], (mantissas[:, -1], exponents[:, -1]))


class Unpacked(QuantisedLayer):
    """A layer read back from device memory, its hidden sizes padded to blocks, as a command cuts it into chunks."""

    def __init__(self, transport: FakeTransport, base: int, words: dict[str, int], command: dict[str, int]):
        self._transport = transport
        self._base = base
        self._words = words
        self._command = command
        self._columns = transport.arch.columns
        self.bytes_read = 0
        shared = words["shared_blocks"]
        experts = words["experts"]
        spec = LayerSpec(
            hidden=32 * words["hidden_blocks"],
            # How experts are chosen is in the words.
            router=RouterSpec(experts, words["top_k"], score="given" if words["given_routes"] else "softmax"),
            # Limits and biases are in the words and the matrices.
            expert=ExpertSpec(
                32 * words["inter_blocks"],
                "relu2" if words["square"] else list(GATES)[words["activation"]],
                gated=bool(words["gated"]),
            ),
            shared=SharedSpec(32 * shared, gated=bool(words["shared_gate"])) if shared else None,
        )
        self.spec = spec
        self._experts: dict[int, QuantisedExpert] = {}
        self._entries = transport.read(base + LAYER.size_bytes, 4 * experts).view(np.uint32).tolist()
        self._widest = self._form(max(entry >> 28 for entry in self._entries))
        rows = experts + words["shared_gate"]
        self.correction = None
        if words["correction"]:
            table = transport.read(base + LAYER.size_bytes + -(-4 * experts // 64) * 64, 4 * experts).view(np.int32)
            self.correction = Correction(table, words["correction_shift"])
        self.router = None
        if not words["given_routes"]:
            exponent = words["router_exponent"] + words["router_shift"]
            self.router = self._matrix([(words["router_address"], rows)], words["input_blocks"], ROUTER, (exponent,))
            assert self.router.shift == words["router_shift"] and words["router_bits"] == ROUTER.bits
        self.descriptor = words
        self.combine_exponent = words["combine_exponent"]
        self.shared = None
        if shared:
            self.shared = self._pair(words["shared_address"], words["shared_bits"], shared, "shared_", "shared_")

    def expert(self, index: int) -> QuantisedExpert:
        if index not in self._experts:
            entry, inter_blocks = self._entries[index], self._words["inter_blocks"]
            self._experts[index] = self._pair(entry % (1 << 28), entry >> 28, inter_blocks, "expert_", "", self._widest)
        return self._experts[index]

    def busy(self, tokens: int) -> int:
        """Array cycles of ``tokens`` tokens, from the shapes of the descriptor."""
        words, c = self._words, self._columns
        depth, first = words["input_blocks"], 32 * (1 + words["gated"])
        cycles = -(-self.spec.router_rows // c) * depth * ROUTER.passes * 2
        for blocks, bits, times in (
            (words["inter_blocks"], self._entries[0] >> 28, words["top_k"]),
            (words["shared_blocks"], words["shared_bits"], 1),
        ):
            cycles += times * len(passes_of(bits)) * blocks * (depth * first // c + words["hidden_blocks"] * 32 // c)
        return tokens * cycles

    def _form(self, bits: int) -> WeightFormat:
        kind = bits, self._words["elements"]
        return next(form for form in FORMATS.values() if (form.bits, bool(form.values)) == kind)

    def _pair(
        self, address: int, bits: int, blocks: int, place: str, prefix: str, widest: WeightFormat | None = None
    ) -> QuantisedExpert:
        words, hidden = self._words, self._words["hidden_blocks"]
        form = self._form(bits)
        down = words[f"{place}down"] * (1 + 4 * bits)
        up_shift, down_shift = words[f"{prefix}up_shift"], words[f"{prefix}down_shift"]
        kinds = ("gate", "up") if words["gated"] else ("gate",)
        both = tuple(words[f"{prefix}{kind}_exponent"] - 8 + up_shift for kind in kinds)
        gate_up = self._matrix([(address, 32 * len(kinds) * blocks)], words["input_blocks"], form, both)
        chunk, stride = self._command["chunk_blocks"], self._command[f"{prefix}chunk_stride"] * (1 + 4 * bits)
        chunks = [
            (address + down + number * stride, 32 * min(chunk, hidden - number * chunk))
            for number in range(-(-hidden // chunk))
        ]
        down_matrix = self._matrix(chunks, blocks, form, (words[f"{prefix}down_exponent"] + down_shift,))
        pair = QuantisedExpert(*(dataclasses.replace(matrix, widest=widest) for matrix in (gate_up, down_matrix)))
        assert (pair.gate_up.shift, pair.down.shift) == (up_shift, down_shift)
        return pair

    def _matrix(
        self, parts: list[tuple[int, int]], blocks: int, form: WeightFormat, exponents: tuple[int, ...]
    ) -> QuantisedMatrix:
        """A matrix from its parts, each an offset in units and a number of rows."""
        pieces = [self._part(offset, rows, blocks, form) for offset, rows in parts]
        codes, scales = (np.concatenate(part) for part in zip(*pieces, strict=True))
        kind = np.int8 if form.bits <= 8 else np.int16
        frac, f = SCALES[scales].transpose(2, 0, 1).astype(np.uint8)
        return QuantisedMatrix(codes.astype(kind), frac, f, exponents, form)

    def _part(self, offset: int, rows: int, blocks: int, form: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
        """Codes and scales."""
        columns, bits = self._columns, form.bits
        groups = -(-rows // columns)
        tiles = groups * blocks
        beat = 4 * columns
        size = (-(-tiles // 4) + tiles * bits) * beat
        beats = self._transport.read(self._base + 64 * offset, size).reshape(-1, beat)
        self.bytes_read += size
        codes = np.zeros((groups * columns, 32 * blocks), np.int16)
        scales = np.zeros((groups * columns, blocks), np.uint8)
        powers = 1 << np.arange(bits - 1, -1, -1)
        powers[0] *= -1
        for tile in range(tiles):
            group, block = divmod(tile, blocks)
            first = tile // 4 * (1 + 4 * bits)
            place = first + 1 + tile % 4 * bits
            out = slice(group * columns, (group + 1) * columns)
            scales[out, block] = beats[first, columns * (tile % 4) : columns * (tile % 4 + 1)]
            planes = np.unpackbits(beats[place : place + bits], axis=1, bitorder="little").reshape(bits, ROWS, columns)
            codes[out, 32 * block : 32 * block + 32] = np.tensordot(powers, planes, 1).T
        if form.values:  # a sign and the number of a magnitude
            magnitudes = np.array(form.values)[codes & 7]
            codes = np.where(codes < 0, -magnitudes, magnitudes)
        return codes[:rows], scales[:rows]
