"""What nextpnr's report says of clocks, paths and cells."""

import pytest

from moe_hw.errors import SetupError
from rtl_gen.timing import own_name, parse_report

REPORT = """
{"fmax": {"$glbnet$clk": {"achieved": 87.5, "constraint": 100}, "mem": {"achieved": 200, "constraint": 133}},
 "utilization": {"DP16KD": {"used": 3, "available": 208}},
 "critical_paths": [
  {"from": "<async>", "to": "posedge $glbnet$clk", "path": []},
  {"from": "posedge mem", "to": "posedge $glbnet$clk", "path": []},
  {"from": "posedge mem", "to": "posedge mem", "path": [
   {"type": "clk-to-q", "delay": 0.5, "from": {"cell": "x.y_TRELLIS_FF_Q_3"}, "to": {"cell": "x.y_TRELLIS_FF_Q_3"}},
   {"type": "routing", "delay": 4.5, "from": {"cell": "x.y_TRELLIS_FF_Q_3"}, "to": {"cell": "z_TRELLIS_FF_Q"}}]},
  {"from": "posedge $glbnet$clk", "to": "posedge $glbnet$clk", "path": [
   {"type": "clk-to-q", "delay": 0.5, "from": {"cell": "a_ff"}, "to": {"cell": "a_ff"}},
   {"type": "routing", "delay": 2.0, "from": {"cell": "a_ff"}, "to": {"cell": "lut"}},
   {"type": "logic", "delay": 0.25, "from": {"cell": "lut"}, "to": {"cell": "lut"}},
   {"type": "routing", "delay": 1.0, "from": {"cell": "lut"}, "to": {"cell": "b_ff"}},
   {"type": "setup", "delay": 0.0, "from": {"cell": "b_ff"}, "to": {"cell": "b_ff"}}]}]}
"""


def test_report_gives_the_slowest_path_of_each_clock() -> None:
    report = parse_report(REPORT)
    fabric, memory = report.clocks
    assert (fabric.clock, fabric.target, fabric.fmax, fabric.met) == ("clk", 100, 87.5, False)
    assert (fabric.start, fabric.end) == ("a_ff", "b_ff")
    assert (fabric.cells, fabric.logic, fabric.routing) == (1, 0.75, 3.0)
    assert (memory.clock, memory.met, memory.start, memory.end, memory.cells) == ("mem", True, "x.y", "z", 0)
    assert report.cells == {"DP16KD": (3, 208)}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", REPORT.replace("posedge mem", "negedge mem"), REPORT.replace("achieved", "x")]
)
def test_other_reports_are_refused(text: str) -> None:
    with pytest.raises(SetupError, match="^expected a report of nextpnr .*; install the version of constraints.txt$"):
        parse_report(text)


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("router.topk.keys_TRELLIS_FF_Q_12_DI_LUT4_Z", "router.topk.keys"),
        ("dq.i_ff9_Q_MULT18X18D_A9", "dq.i_ff9_Q"),
        ("dq.buf.buf6$IOL", "dq.buf.buf6"),
        ("command$438.count_TRELLIS_FF_Q", "command$438.count"),
        ("rows_3.bank.0.0_DP16KD", "rows_3.bank.0.0"),
        ("$PACKER_VCC", "$PACKER_VCC"),
    ],
)
def test_cells_are_named_after_their_signals(cell: str, name: str) -> None:
    assert own_name(cell) == name
