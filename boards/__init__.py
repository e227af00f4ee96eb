"""The boards: one YAML file each, checked while it is read.

A board's ``accelerator`` section holds the sizes of ``moe_hw.arch.Arch``; :mod:`moe_hw.fit` turns it into one and
holds it against the FPGA.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from moe_hw.errors import DeviceError, UsageError

DEFAULT_BOARD = "ulx3s-85f"
MemoryType = Literal["sdr", "ddr3", "ddr4", "hbm2"]

_UNGROUPED = {f"{name}_{reach}": name for name in ("tRRD", "tCCD", "tWTR") for reach in "SL"}
_STANDARD_NAMES: dict[str, dict[str, str]] = {
    "sdr": _UNGROUPED,
    "ddr3": _UNGROUPED,
    "hbm2": {"CL": "RL", "CWL": "WL", "tRCD": "tRCDRD", "tRTP": "tRTPL"}
    | {name: name.replace("_", "") for name in _UNGROUPED},
}
"""What a memory type's own standard calls the fields of ``Timing``, where it differs: the keys of the file."""

_FOLDER = Path(__file__).parent
_T = TypeVar("_T")


@dataclass(frozen=True)
class Fpga:
    """What the FPGA offers; ``bram_kbits`` counts block RAM and, where there is one, UltraRAM."""

    family: str
    device: str
    luts: int
    dsps: int
    bram_kbits: int


@dataclass(frozen=True)
class Timing:
    """DRAM timing parameters in nanoseconds, with the names of DDR4 (JESD79-4).

    The keys of a board file are those of the memory's own standard: SDR and DDR3 have no bank groups, and one
    ``tRRD`` is both ``tRRD_S`` and ``tRRD_L``; HBM2 calls CL ``RL``, tRCD ``tRCDRD`` and tRRD_S ``tRRDS``.
    ``tRTW``, in no standard, is the gap on the data pins between a read's last transfer and a write's first one.
    A parameter that the standard does not have is 0.
    """

    CL: float
    CWL: float
    tRCD: float
    tRP: float
    tRAS: float
    tRC: float
    tRRD_S: float
    tRRD_L: float
    tFAW: float
    tCCD_S: float
    tCCD_L: float
    tRFC: float
    tREFI: float
    tWR: float
    tWTR_S: float
    tWTR_L: float
    tRTP: float
    tRTW: float


@dataclass(frozen=True)
class Memory:
    """The memory of a board.

    Attributes:
        type: the standard, whose names the file's timing has.
        size_mib: MiB of all channels together.
        data_bits: data pins of one channel.
        mt_per_s: transfers on a pin, in millions per second.
        channels: independent channels, interleaved in small pieces.
        banks: banks of a channel, all groups together.
        bank_groups: groups that they form; 1 where the standard has none.
        row_bytes: bytes of an open row of a bank, over all chips of the channel.
        burst_length: transfers of one DRAM burst.
        controller_ns: what controller and interconnect add to the latency of an access.
        timing: the chips' timing.
    """

    type: MemoryType
    size_mib: int
    data_bits: int
    mt_per_s: float
    channels: int
    banks: int
    bank_groups: int
    row_bytes: int
    burst_length: int
    controller_ns: float
    timing: Timing

    @property
    def size_bytes(self) -> int:
        return self.size_mib << 20

    @property
    def burst_bytes(self) -> int:
        """Bytes of one DRAM burst of a channel."""
        return self.burst_length * self.data_bits // 8

    @property
    def clock_ns(self) -> float:
        """Nanoseconds of a clock of the memory."""
        return (1 if self.type == "sdr" else 2) * 1e3 / self.mt_per_s

    def clocks(self, nanoseconds: float) -> int:
        """Whole clocks of the memory that last at least ``nanoseconds``, as a controller has to count them."""
        # Data sheets round to 0.01 ns: 14.16 ns are 17 clocks of 0.8333 ns.
        return math.ceil(nanoseconds / self.clock_ns - 0.01)

    def check_range(self, address: int, size: int) -> None:
        """Refuse an access that leaves the memory.

        Raises:
            DeviceError: the ``size`` bytes from ``address`` are not all within it.
        """
        if size < 0 or not 0 <= address <= self.size_bytes - size:
            raise DeviceError(
                f"expected addresses within the {self.size_bytes} bytes of device memory, "
                f"got {size} bytes at {address:#x}"
            )

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth at the pins of all channels."""
        return self.channels * self.data_bits / 8 * self.mt_per_s * 1e6


@dataclass(frozen=True)
class Ethernet:
    """A board's place in the local network.

    Attributes:
        mac: address of the station: six bytes in hexadecimal, joined by colons.
        address: its IPv4 address.
    """

    mac: str
    address: str


@dataclass(frozen=True)
class Board:
    """One board: its FPGA, its memory and the sizes of the accelerator that is built for it.

    Attributes:
        name: the name users give.
        description: one line.
        fpga: resources.
        clock_mhz: clock of the accelerator.
        memory: the memory that holds the weights.
        accelerator: sizes by name, the arguments of ``moe_hw.arch.Arch``.
        ethernet: its place in the network, if the bitstream is to have one; the key may be missing.
    """

    name: str
    description: str
    fpga: Fpga
    clock_mhz: float
    memory: Memory
    accelerator: dict[str, int]
    ethernet: Ethernet | None = None

    @property
    def memory_bytes_per_cycle(self) -> float:
        """What the memory's pins can move in one cycle of the accelerator."""
        return self.memory.bytes_per_second / (self.clock_mhz * 1e6)


def list_boards() -> list[str]:
    """Names of the boards that come with the project, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_board(name_or_path: str | Path) -> Board:
    """Read a board by its name, or any YAML file by its path (something with a ``/`` or a YAML suffix).

    Raises:
        UsageError: there is no such board or file, or a key of the file is missing, unknown or wrong.
    """
    text = str(name_or_path)
    path = Path(text)
    if not (isinstance(name_or_path, Path) or "/" in text or path.suffix in (".yaml", ".yml")):
        known = list_boards()
        if text not in known:
            close = difflib.get_close_matches(text.lower(), known, 1)
            hint = f"; did you mean {close[0]}?" if close else "; or give the path of a YAML file"
            raise UsageError(f"board: expected one of {', '.join(known)}, got {text!r}{hint}")
        path = _FOLDER / f"{text}.yaml"
    board = _record(Board, _read(path), str(path), "", {})
    _check(board, str(path))
    return board


def as_yaml(board: Board) -> str:
    """The board as the text of a file that :func:`load_board` reads."""
    data = dataclasses.asdict(board)
    names = _STANDARD_NAMES.get(board.memory.type, {})
    timing = data["memory"]["timing"]
    data["memory"]["timing"] = {names.get(field, field): value for field, value in timing.items()}
    if board.ethernet is None:
        del data["ethernet"]
    return yaml.safe_dump(data, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UsageError(f"{path}: expected a readable board file, got: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected UTF-8 text, got other bytes") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"{path}: expected YAML, got: {line}") from None


def _record(record: type[_T], value: Any, source: str, prefix: str, names: Mapping[str, str]) -> _T:
    """Build the dataclass ``record`` from a mapping that has exactly its fields, some under other ``names``.

    Fields that may be None need not be there.
    """
    if not isinstance(value, dict):
        raise UsageError(f"{source}: {prefix or 'file'}: expected a mapping of keys, got {value!r}")
    hints = typing.get_type_hints(record)
    keys = {field: names.get(field, field) for field in hints}
    known = list(dict.fromkeys(keys.values()))
    dotted = f"{prefix}." if prefix else ""
    for key in value:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"{source}: {dotted}{key}: expected one of {', '.join(known)}, got this key{hint}")
    optional = {field for field, hint in hints.items() if type(None) in typing.get_args(hint)}
    for key in known:
        if key not in value and key not in optional:
            raise UsageError(f"{source}: {dotted}{key}: expected this key, got none; add it")
    inner = _STANDARD_NAMES.get(str(value.get("type")), {})
    return record(
        **{
            field: _value(hints[field], value[key], source, f"{dotted}{key}", inner)
            for field, key in keys.items()
            if key in value
        }
    )


def _value(hint: Any, value: Any, source: str, key: str, names: Mapping[str, str]) -> Any:
    if type(None) in typing.get_args(hint):
        hint = typing.get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast(type, hint), value, source, key, names)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{source}: {key}: expected a mapping of sizes, got {value!r}")
        for name in value:
            if not isinstance(name, str):
                raise UsageError(f"{source}: {key}: expected names as keys, got {name!r}")
        return {name: _value(int, item, source, f"{key}.{name}", {}) for name, item in value.items()}
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if typing.get_origin(hint) is Literal:
        ok, expected = value in typing.get_args(hint), f"one of {', '.join(typing.get_args(hint))}"
    elif hint is str:
        ok, expected = isinstance(value, str) and value.strip() != "" and value.isprintable(), "one line of text"
    elif hint is int:
        ok, expected = number and isinstance(value, int) and value > 0, "a whole number above 0"
    else:
        ok, expected = number and math.isfinite(value) and value >= 0, "a number, not negative"
    if not ok:
        raise UsageError(f"{source}: {key}: expected {expected}, got {value!r}")
    return float(value) if hint is float else value


def _check(board: Board, source: str) -> None:
    """What the types do not say: powers of two and sizes that contradict each other."""
    memory = board.memory

    def require(ok: bool, key: str, expected: str, got: object) -> None:
        if not ok:
            raise UsageError(f"{source}: {key}: expected {expected}, got {got!r}")

    require(board.clock_mhz > 0, "clock_mhz", "a frequency above 0", board.clock_mhz)
    require(memory.mt_per_s > 0, "memory.mt_per_s", "a rate above 0", memory.mt_per_s)
    for name in ("data_bits", "channels", "banks", "bank_groups", "row_bytes", "burst_length"):
        value = getattr(memory, name)
        require(value & (value - 1) == 0, f"memory.{name}", "a power of two", value)
    require(memory.data_bits >= 8, "memory.data_bits", "at least 8", memory.data_bits)
    require(memory.bank_groups <= memory.banks, "memory.bank_groups", f"at most {memory.banks}", memory.bank_groups)
    require(
        memory.burst_bytes <= memory.row_bytes,
        "memory.row_bytes",
        f"at least a burst of {memory.burst_bytes} bytes",
        memory.row_bytes,
    )
    timing = memory.timing
    shortest = timing.tRFC + timing.tRP + timing.tRC
    require(timing.tREFI > shortest, "memory.timing.tREFI", f"more than tRFC + tRP + tRC = {shortest:g}", timing.tREFI)
    if board.ethernet is not None:
        mac, address = board.ethernet.mac, board.ethernet.address
        # A group has the lowest bit of the first byte.
        station = re.fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", mac.lower())
        require(station is not None, "ethernet.mac", "the address of a station, such as 02:00:00:00:00:01", mac)
        require(_is_host(address), "ethernet.address", "the IPv4 address of a host, such as 192.168.1.50", address)


def _is_host(address: str) -> bool:
    try:
        parsed = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return not (parsed.is_multicast or parsed.is_unspecified or parsed.is_loopback or parsed.is_reserved)
