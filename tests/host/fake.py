"""A device without hardware: it executes commands from its memory with the integer model.

It reads everything it needs from memory, word by word as ``docs/memory-image.md`` lays it out, and shares no packing
code with the driver: what the driver writes has to be right for the results to be.
"""

from __future__ import annotations

import numpy as np
import torch

from host.transport import Transport
from moe_hw.arch import ROWS, Arch
from moe_hw.formats import FORMATS, ROUTER, QuantisedMatrix, Tokens, WeightFormat
from moe_hw.quantised import QuantisedExpert, QuantisedLayer
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
from moe_hw.twins.combine import to_float32
from moe_hw.twins.layer import golden, route_tokens
from tests.moe_hw.rules import refusal


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
        count, blocks = command["tokens"], layer["hidden_blocks"]
        self.commands.append(count)
        unpacked = Unpacked(self, 64 * command["layer"], layer, command)
        lines = self.read(64 * command["input"], 128 * count * blocks).reshape(count, 2, blocks, 64)
        hi, lo = (np.ascontiguousarray(lines[:, half, :, :32]).view(np.int8) for half in (0, 1))
        exponents = np.ascontiguousarray(lines[..., 32:34]).view(np.int16)[..., 0]
        assert np.array_equal(exponents[:, 0], exponents[:, 1])
        tokens = Tokens(hi, lo, exponents[:, 0])
        choices = layer["top_k"] + bool(layer["shared_blocks"])
        room = 64 * count * choices * max(layer["inter_blocks"], layer["shared_blocks"])
        self.write(64 * command["hidden"], np.full(room, 0xA5, np.uint8))
        values = np.ldexp(tokens.mantissas.astype(np.float64), tokens.exponents[..., None].astype(np.int64))
        result = golden(unpacked, torch.from_numpy(values.reshape(count, -1)))
        experts, weights = [result.experts.numpy()], [result.weights.numpy()]
        routes = route_tokens(unpacked, tokens)
        if layer["shared_blocks"]:
            assert routes.shared is not None
            experts.append(np.full((count, 1), layer["experts"]))
            weights.append(to_float32(*routes.shared)[:, None])
        routing = np.zeros((count, choices, 2), np.uint32)
        routing[..., 0] = np.concatenate(experts, 1)
        routing[..., 1] = np.concatenate(weights, 1).view(np.uint32)
        self.write(64 * command["output"], result.output.numpy())
        self.write(64 * command["routing"], routing)
        moved_in = COMMAND.size_bytes + LAYER.size_bytes + 66 * count * blocks + unpacked.bytes_read
        moved_out = result.output.numpy().nbytes + routing.nbytes
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
        spec = LayerSpec(
            hidden=32 * words["hidden_blocks"],
            router=RouterSpec(words["experts"], words["top_k"], normalise=bool(words["normalise"])),
            expert=ExpertSpec(32 * words["inter_blocks"]),
            shared=SharedSpec(32 * shared, gated=bool(words["shared_gate"])) if shared else None,
        )
        self.spec = spec
        self._experts: dict[int, QuantisedExpert] = {}
        rows = words["experts"] + words["shared_gate"]
        exponent = words["router_exponent"] + words["router_shift"]
        self.router = self._matrix([(words["router_address"], rows)], words["hidden_blocks"], ROUTER, (exponent,))
        assert self.router.shift == words["router_shift"] and words["router_passes"] == ROUTER.passes
        self.combine_exponent = words["combine_exponent"]
        self.shared = None
        if shared:
            self.shared = self._pair(words["shared_address"], words["shared_down"], shared, "shared_")

    def expert(self, index: int) -> QuantisedExpert:
        if index not in self._experts:
            address = self._words["expert_address"] + index * self._words["expert_stride"]
            self._experts[index] = self._pair(address, self._words["expert_down"], self._words["inter_blocks"], "")
        return self._experts[index]

    def busy(self, tokens: int) -> int:
        """Array cycles of ``tokens`` tokens, from the shapes of the descriptor."""
        words, c = self._words, self._columns
        cycles = -(-self.spec.router_rows // c) * words["hidden_blocks"] * words["router_passes"] * 2
        for blocks, passes, times in (
            (words["inter_blocks"], words["passes"], words["top_k"]),
            (words["shared_blocks"], words["shared_passes"], 1),
        ):
            cycles += times * passes * blocks * words["hidden_blocks"] * (64 // c + 32 // c)
        return tokens * cycles

    def _pair(self, address: int, down: int, blocks: int, prefix: str) -> QuantisedExpert:
        words, hidden = self._words, self._words["hidden_blocks"]
        form = next(form for form in FORMATS.values() if form.passes == words[f"{prefix}passes"])
        up_shift, down_shift = words[f"{prefix}up_shift"], words[f"{prefix}down_shift"]
        both = tuple(words[f"{prefix}{kind}_exponent"] - 8 + up_shift for kind in ("gate", "up"))
        gate_up = self._matrix([(address, 64 * blocks)], hidden, form, both)
        chunk, stride = self._command["chunk_blocks"], self._command[f"{prefix}chunk_stride"]
        chunks = [
            (address + down + number * stride, 32 * min(chunk, hidden - number * chunk))
            for number in range(-(-hidden // chunk))
        ]
        down_matrix = self._matrix(chunks, blocks, form, (words[f"{prefix}down_exponent"] + down_shift,))
        assert (gate_up.shift, down_matrix.shift) == (up_shift, down_shift)
        return QuantisedExpert(gate_up, down_matrix)

    def _matrix(
        self, parts: list[tuple[int, int]], blocks: int, form: WeightFormat, exponents: tuple[int, ...]
    ) -> QuantisedMatrix:
        """A matrix from its parts, each an offset in units and a number of rows."""
        pieces = [self._part(offset, rows, blocks, form.bits) for offset, rows in parts]
        codes, scales = (np.concatenate(part) for part in zip(*pieces, strict=True))
        kind = np.int8 if form.bits <= 8 else np.int16
        return QuantisedMatrix(codes.astype(kind), scales >> 5, scales & 31, exponents, form)

    def _part(self, offset: int, rows: int, blocks: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes and scales."""
        columns = self._columns
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
        return codes[:rows], scales[:rows]
