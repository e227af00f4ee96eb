"""Reading board files: the good ones, and one line for everything that can be wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import boards
from boards import DEFAULT_BOARD, Ethernet, as_yaml, list_boards, load_board
from moe_hw.errors import UsageError

GOOD: dict[str, Any] = yaml.safe_load((Path(boards.__file__).parent / "ulx3s-85f.yaml").read_text())


def changed(key: str, value: Any) -> dict[str, Any]:
    """The default board with the dotted ``key`` set, or without it if ``value`` is Ellipsis."""
    data = copy.deepcopy(GOOD)
    *parents, last = key.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "board.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as failure:
        load_board(path)
    message = str(failure.value)
    assert "\n" not in message and message.startswith(str(path))
    return message.removeprefix(f"{path}: ")


def test_boards_that_come_with_the_project() -> None:
    assert DEFAULT_BOARD in list_boards() and "kv260" in list_boards()
    for name in list_boards():
        assert load_board(name).name == name


@pytest.mark.parametrize(
    ("name", "gigabytes_per_second", "size_mib"),
    [
        ("ulx3s-85f", 0.266, 32),
        ("ecpix5-85f", 0.72, 512),
        ("kv260", 19.2, 4096),
        ("zcu102", 19.2, 4096),
        ("u280", 32 * 14.375, 8192),
        ("u55c", 32 * 14.375, 16384),
    ],
)
def test_memories(name: str, gigabytes_per_second: float, size_mib: int) -> None:
    memory = load_board(name).memory
    assert memory.bytes_per_second == pytest.approx(gigabytes_per_second * 1e9)
    assert memory.size_mib == size_mib


@pytest.mark.parametrize("name", list_boards())
def test_timing_contradicts_neither_itself_nor_the_pins(name: str) -> None:
    memory, timing = load_board(name).memory, load_board(name).memory.timing
    burst = memory.burst_length / memory.mt_per_s * 1e3
    assert timing.tCCD_S <= burst * 1.01, "the pins could not be kept busy"
    assert timing.tCCD_L <= burst * memory.bank_groups * 1.01, "nor by turns of the groups"
    assert timing.tRC >= timing.tRAS + timing.tRP or memory.type == "sdr"
    for name in ("tRRD", "tCCD", "tWTR"):
        short, long = getattr(timing, f"{name}_S"), getattr(timing, f"{name}_L")
        assert short == long if memory.bank_groups == 1 else short < long


@pytest.mark.parametrize("name", list_boards())
def test_a_board_as_text_reads_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(as_yaml(load_board(name)))
    assert load_board(path) == load_board(name)
    keys = yaml.safe_load((Path(boards.__file__).parent / f"{name}.yaml").read_text())["memory"]["timing"]
    assert set(yaml.safe_load(path.read_text())["memory"]["timing"]) == set(keys)


def test_timing_has_the_names_of_its_standard(tmp_path: Path) -> None:
    timing = load_board("u280").memory.timing
    assert (timing.CL, timing.tRRD_S, timing.tRRD_L) == (14, 4, 6)
    assert load_board("ulx3s-85f").memory.timing.tRRD_L == load_board("ulx3s-85f").memory.timing.tRRD_S == 14
    message = refusal(tmp_path, yaml.safe_dump(changed("memory.type", "hbm2")))
    assert message.startswith("memory.timing.CL: expected one of RL, WL, tRCDRD, ")


def test_a_place_in_the_network_may_be_left_out() -> None:
    assert load_board("ulx3s-85f").ethernet is None
    assert load_board("ecpix5-85f").ethernet == Ethernet("02:6d:6f:65:00:01", "192.168.1.50")


def test_figures_of_the_default_board() -> None:
    board = load_board("ulx3s-85f")
    assert (board.fpga.luts, board.fpga.dsps, board.fpga.bram_kbits) == (83640, 156, 208 * 18)
    assert board.memory.size_bytes == 1 << 25 and board.memory.burst_bytes == 16
    assert board.memory.bytes_per_second == 266e6
    assert isinstance(board.clock_mhz, float) and board.accelerator["columns"] == 8


def test_a_file_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(changed("name", "mine")))
    assert load_board(str(path)).name == load_board(path).name == "mine"


def test_unknown_names() -> None:
    with pytest.raises(
        UsageError, match=r"^board: expected one of ecpix5-85f, kv260, .*, got 'ULX3S'; did you mean ulx3s-85f\?$"
    ):
        load_board("ULX3S")
    with pytest.raises(UsageError, match=r"got 'qqq'; or give the path of a YAML file$"):
        load_board("qqq")
    with pytest.raises(UsageError, match=r"nowhere\.yaml: expected a readable board file, got: No such file"):
        load_board("nowhere.yaml")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("name", ..., "name: expected this key, got none; add it"),
        ("memory.timing.tRFC", ..., "memory.timing.tRFC: expected this key, got none; add it"),
        ("memory.bank", 4, "memory.bank: expected one of type, size_mib, data_bits, mt_per_s, channels, banks, "
            "bank_groups, row_bytes, burst_length, controller_ns, timing, got this key; did you mean banks?"),
        ("fpga", 5, "fpga: expected a mapping of keys, got 5"),
        ("fpga.luts", "many", "fpga.luts: expected a whole number above 0, got 'many'"),
        ("fpga.luts", 1.5, "fpga.luts: expected a whole number above 0, got 1.5"),
        ("fpga.dsps", True, "fpga.dsps: expected a whole number above 0, got True"),
        ("fpga.dsps", 0, "fpga.dsps: expected a whole number above 0, got 0"),
        ("clock_mhz", 0, "clock_mhz: expected a frequency above 0, got 0.0"),
        ("clock_mhz", float("nan"), "clock_mhz: expected a number, not negative, got nan"),
        ("clock_mhz", None, "clock_mhz: expected a number, not negative, got None"),
        ("description", "", "description: expected one line of text, got ''"),
        ("memory.type", "ddr9", "memory.type: expected one of sdr, ddr3, ddr4, hbm2, got 'ddr9'"),
        ("memory.banks", 3, "memory.banks: expected a power of two, got 3"),
        ("memory.bank_groups", 8, "memory.bank_groups: expected at most 4, got 8"),
        ("memory.timing.tRRD_S", 5, "memory.timing.tRRD_S: expected one of CL, CWL, tRCD, tRP, tRAS, tRC, tRRD, tFAW, "
            "tCCD, tRFC, tREFI, tWR, tWTR, tRTP, tRTW, got this key; did you mean tRRD?"),
        ("memory.data_bits", 4, "memory.data_bits: expected at least 8, got 4"),
        ("memory.row_bytes", 8, "memory.row_bytes: expected at least a burst of 16 bytes, got 8"),
        ("memory.timing.tRP", -1, "memory.timing.tRP: expected a number, not negative, got -1"),
        ("memory.timing.tREFI", 100, "memory.timing.tREFI: expected more than tRFC + tRP + tRC = 135, got 100.0"),
        ("accelerator", [], "accelerator: expected a mapping of sizes, got []"),
        ("accelerator.columns", "8", "accelerator.columns: expected a whole number above 0, got '8'"),
        ("accelerator", {1: 2}, "accelerator: expected names as keys, got 1"),
        ("ethernet", None, "ethernet: expected a mapping of keys, got None"),
        ("ethernet", {"mac": "02:00:00:00:00:01"}, "ethernet.address: expected this key, got none; add it"),
        ("ethernet", {"mac": "03:00:00:00:00:01", "address": "10.0.0.1"},
            "ethernet.mac: expected the address of a station, such as 02:00:00:00:00:01, got '03:00:00:00:00:01'"),
        ("ethernet", {"mac": "02:00:00:00:00:01", "address": "10.0.1"},
            "ethernet.address: expected the IPv4 address of a host, such as 192.168.1.50, got '10.0.1'"),
        ("ethernet", {"mac": "02:00:00:00:00:01", "address": "224.0.0.1"},
            "ethernet.address: expected the IPv4 address of a host, such as 192.168.1.50, got '224.0.0.1'"),
    ],
)  # fmt: skip
def test_wrong_keys_and_values(tmp_path: Path, key: str, value: Any, message: str) -> None:
    assert refusal(tmp_path, yaml.safe_dump(changed(key, value))) == message


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "file: expected a mapping of keys, got None"),
        ("a: [", "expected YAML, got: while parsing"),
        ("a: 1\na: 2\n", "expected YAML, got: key 'a' is given twice"),
        ("? [1, 2]\n: 3\n", "expected YAML, got: "),
        ("!!python/object:os.system x", "expected YAML, got: "),
        ("[" * 5000, "expected YAML, got: "),
    ],
)
def test_text_that_is_no_board(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match="expected UTF-8 text"):
        load_board(path)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(scalars, inner), max_leaves=5)
keys = [key for key in GOOD] + [f"memory.{key}" for key in GOOD["memory"]]
keys += [f"memory.timing.{key}" for key in GOOD["memory"]["timing"]] + ["ethernet"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(keys), value=values)
def test_any_value_is_taken_or_refused_in_one_line(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(yaml.safe_dump(changed(key, value)))
    try:
        load_board(path)
    except UsageError as error:
        assert "\n" not in str(error) and str(error).startswith(str(path))


def test_clocks_of_a_memory_are_whole_and_long_enough() -> None:
    sdr, ddr = load_board("ulx3s-85f").memory, load_board("kv260").memory
    assert sdr.clock_ns == pytest.approx(7.5188, abs=1e-4) and ddr.clock_ns == pytest.approx(0.8333, abs=1e-4)
    assert [sdr.clocks(time) for time in (0, 7.5, 7.6, 15, 22.5, 60)] == [0, 1, 2, 2, 3, 8]
    assert ddr.clocks(14.16) == 17
