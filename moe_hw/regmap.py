"""The register map as text, from :mod:`moe_hw.registers`; ``python -m moe_hw.regmap`` prints the page of the docs."""

from __future__ import annotations

from typing import Any

from moe_hw.registers import (
    COMMAND,
    COMPLETION,
    CSRS,
    LAYER,
    LAYOUT_VERSION,
    STATUS_TEXT,
    Record,
    Status,
    Waiting,
    csr_address,
)

RECORDS = (COMMAND, LAYER, COMPLETION)


def as_dict() -> dict[str, Any]:
    """The map as JSON types: CSRs, records, status codes and the bits of the ``state`` CSR."""
    return {
        "layout_version": LAYOUT_VERSION,
        "csrs": [
            {"name": csr.name, "address": csr_address(csr.name), "access": csr.access, "doc": csr.doc} for csr in CSRS
        ],
        "records": {
            record.name: {
                "size_bytes": record.size_bytes,
                "words": [
                    {"name": word.name, "offset": 4 * at, "bits": word.bits, "signed": word.signed, "doc": word.doc}
                    for at, word in enumerate(record.words)
                ],
            }
            for record in RECORDS
        },
        "status": {status.name: {"code": int(status), "doc": STATUS_TEXT[status]} for status in Status},
        "state": {flag.name: int(flag) for flag in Waiting},
    }


def as_markdown() -> str:
    """The map as a page of documentation."""
    parts = [
        "# Register map",
        "Made from `moe_hw/registers.py` by `python -m moe_hw.regmap > docs/register-map.md`; do not edit.",
        f"Layout version {LAYOUT_VERSION}. All words are 32 bits, little-endian. "
        "The offset column counts bytes; addresses and offsets that a word holds count in units of 64 bytes.",
        "## CSRs",
        _table(
            ("address", "name", "access", ""),
            [(f"{csr_address(csr.name):#04x}", f"`{csr.name}`", csr.access, csr.doc) for csr in CSRS],
        ),
        "## Bits of `state`",
        _table(("bit", "waiting for"), [(int(flag).bit_length() - 1, f"`{flag.name}`") for flag in Waiting]),
        *(text for record in RECORDS for text in _record(record)),
        "## Status codes",
        _table(("code", "name", ""), [(int(status), f"`{status.name}`", STATUS_TEXT[status]) for status in Status]),
    ]
    return "\n\n".join(parts) + "\n"


def _record(record: Record) -> tuple[str, str]:
    rows = [
        (f"{4 * at:#04x}", f"`{word.name}`", f"{word.bits}{' signed' if word.signed else ''}", word.doc)
        for at, word in enumerate(record.words)
    ]
    return f"## Record `{record.name}`, {record.size_bytes} bytes", _table(("offset", "word", "bits", ""), rows)


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    print(as_markdown(), end="")
