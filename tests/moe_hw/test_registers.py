"""The records: packing, unpacking, and that the tables fit their records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_hw.registers import (
    COMMAND,
    COMPLETION,
    COUNTERS,
    CSRS,
    DEVICE_MAGIC,
    LAYER,
    STATUS_TEXT,
    Record,
    Status,
    Waiting,
    Word,
    csr_address,
)

RECORDS = (COMMAND, LAYER, COMPLETION)


@st.composite
def values_of(draw: st.DrawFn, record: Record) -> dict[str, int]:
    values = {}
    for word in record.words:
        low = -(1 << word.bits - 1) if word.signed else 0
        values[word.name] = draw(st.integers(low, low + (1 << word.bits) - 1), word.name)
    return values


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
@given(data=st.data())
def test_round_trip(record: Record, data: st.DataObject) -> None:
    values = data.draw(values_of(record))
    packed = record.pack(values)
    assert packed.dtype == np.uint32 and packed.shape == (record.size,)
    assert record.unpack(packed) == values


def test_words_without_a_value_are_zero() -> None:
    assert not COMMAND.pack({}).any()
    assert COMMAND.unpack(COMMAND.pack({"tokens": 3}))["tokens"] == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"experts": 1024}, "layer.experts: expected 0 to 1023, got 1024"),
        ({"experts": -1}, "layer.experts: expected 0 to 1023, got -1"),
        ({"router_shift": 32}, "layer.router_shift: expected -32 to 31, got 32"),
        ({"expert": 1}, "layer: expected one of magic, .*, got 'expert'"),
    ],
)
def test_values_outside_their_word(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LAYER.pack(values)


def test_a_negative_value_fills_its_word() -> None:
    packed = LAYER.pack({"router_exponent": -1})
    assert packed[LAYER.index["router_exponent"]] == 0xFFFFFFFF


def test_records_are_whole_units() -> None:
    assert [record.size_bytes for record in RECORDS] == [64, 256, 64]


def test_a_record_refuses_two_words_of_one_name() -> None:
    with pytest.raises(AssertionError):
        Record("twice", 4, [Word("a", ""), Word("a", "")])


def test_csr_addresses_are_words_in_order() -> None:
    assert [csr_address(csr.name) for csr in CSRS] == list(range(0, 4 * len(CSRS), 4))
    with pytest.raises(KeyError):
        csr_address("nothing")


def test_every_status_has_a_text_and_every_word_a_description() -> None:
    assert set(STATUS_TEXT) == set(Status)
    assert all(word.doc for record in RECORDS for word in record.words)
    assert all(csr.doc and csr.access in ("ro", "rw") for csr in CSRS)
    assert {word.name for word in COUNTERS} <= set(COMPLETION.index)


def test_waiting_bits_are_different() -> None:
    assert sum(Waiting) == sum(1 << bit for bit in range(len(Waiting)))


def test_magic_reads_as_text() -> None:
    assert DEVICE_MAGIC.to_bytes(4, "little") == b"HEoM"
