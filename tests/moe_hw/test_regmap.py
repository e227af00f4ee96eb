"""The register map says what ``registers.py`` says, and the documentation says it too."""

from __future__ import annotations

import json
from pathlib import Path

from moe_hw import regmap
from moe_hw.registers import COMMAND, COMPLETION, CSRS, LAYER, Status

PAGE = Path(__file__).parents[2] / "docs" / "register-map.md"


def test_documentation_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == regmap.as_markdown(), "run python -m moe_hw.regmap > docs/register-map.md"


def test_every_word_is_listed_with_its_place() -> None:
    table = json.loads(json.dumps(regmap.as_dict()))
    assert [csr["name"] for csr in table["csrs"]] == [csr.name for csr in CSRS]
    assert [csr["address"] for csr in table["csrs"]] == [4 * at for at in range(len(CSRS))]
    for record in (COMMAND, LAYER, COMPLETION):
        listed = table["records"][record.name]
        assert listed["size_bytes"] == 4 * record.size
        assert {word["name"]: word["offset"] // 4 for word in listed["words"]} == record.index
    assert {status["code"] for status in table["status"].values()} == {int(status) for status in Status}
