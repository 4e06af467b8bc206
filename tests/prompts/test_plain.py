"""Arrow columns become plain values: exact, shared where they are equal, counted in bytes."""

import math
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.prompts.plain import plain
from pipeline.prompts.records import parse_record
from pipeline.prompts.values import BadRecord, Foreign

FAR = 253402300800
"""The first second of the year 10000."""

LEAST, MOST = -(2**63), 2**63 - 1

MOMENTS: list[tuple[int, Any, str]] = [
    (0, pa.date32(), "1970-01-01"),
    (2**31 - 1, pa.date32(), "5881580-07-11"),
    (86_400_000, pa.date64(), "1970-01-02"),
    (0, pa.timestamp("s"), "1970-01-01 00:00:00"),
    (FAR, pa.timestamp("s"), "10000-01-01 00:00:00"),
    (1500, pa.timestamp("ms"), "1970-01-01 00:00:01.500000"),
    (1, pa.timestamp("us"), "1970-01-01 00:00:00.000001"),
    (1000, pa.timestamp("ns"), "1970-01-01 00:00:00.000001"),
    (1, pa.timestamp("ns"), "1970-01-01 00:00:00.000000001"),
    (LEAST, pa.timestamp("us"), f"{LEAST} us"),
    (MOST, pa.timestamp("ns"), "2262-04-11 23:47:16.854775807"),
    (0, pa.timestamp("us", "Mars/Phobos"), "1970-01-01 00:00:00+00:00"),
    (3661, pa.time32("s"), "01:01:01"),
    (86_400, pa.time32("s"), "86400 s"),
    (-1, pa.time64("us"), "-1 us"),
    (1, pa.time64("ns"), "00:00:00.000000001"),
    (90, pa.duration("s"), "90 s"),
    (LEAST, pa.duration("ns"), f"{LEAST} ns"),
]


@pytest.mark.parametrize(("value", "kind", "text"), MOMENTS)
def test_moments_of_any_size_become_their_exact_text(value: int, kind: Any, text: str) -> None:
    whole = pa.int32() if kind.bit_width == 32 else pa.int64()
    (found, nothing), _ = plain(pa.array([value, None], whole).cast(kind))
    assert (found, nothing) == (Foreign(str(kind), text), None)
    record = {"prompt": "x", "at": [found]}
    assert parse_record(record, teachers=[]).metadata == f'{{"at": ["{text}"]}}'
    with pytest.raises(BadRecord, match="expected text in 'prompt', found"):
        parse_record({"prompt": found}, teachers=[])


VALUES = {
    "structs": ([{"a": 1, "b": None}, None], pa.struct([("a", pa.int8()), ("b", pa.string())])),
    "lists": ([["a", None], [], None], pa.list_(pa.string())),
    "lists of lists": ([[[1], []], [None]], pa.list_(pa.large_list(pa.int8()))),
    "fixed lists": ([[1, 2], None], pa.list_(pa.int8(), 2)),
    "list views": ([["a"], None, []], pa.list_view(pa.string())),
    "decimals": ([Decimal("1." + "3" * 60), None], pa.decimal256(70, 60)),
    "half floats": ([1.5, -math.inf, None], pa.float16()),
    "views": (["a", "b" * 40, None], pa.string_view()),
    "nulls": ([None, None], pa.null()),
    "bytes": ([b"\xff", None], pa.binary()),
    "dictionaries": (["a", None, "a"], pa.dictionary(pa.int8(), pa.string())),
    "numbers": ([2**64 - 1, None], pa.uint64()),
    "truths": ([True, None, False], pa.bool_()),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_also_from_a_slice(name: str) -> None:
    values, kind = VALUES[name]
    array = pa.array(values, kind)
    assert plain(array)[0] == values
    assert plain(array.slice(1))[0] == values[1:]
    assert plain(array.slice(0, 0))[0] == []


def test_maps_are_lists_of_pairs_for_a_key_may_stand_twice() -> None:
    pairs = [("a", 1), ("a", 2)]
    array = pa.array([pairs, None, []], pa.map_(pa.string(), pa.int8()))
    assert plain(array)[0] == [[["a", 1], ["a", 2]], None, []]


def test_extensions_are_their_values() -> None:
    number = "00000000-0000-0000-0000-000000000001"
    assert plain(pa.array([bytes(15) + b"\x01", None], pa.uuid()))[0] == [number, None]
    truths = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([3, 0, None], pa.int8()))
    assert plain(truths)[0] == [True, False, None]


def test_equal_texts_of_a_dictionary_are_one_object_and_counted_for_each_row() -> None:
    array = pa.array(["long" * 100, "b"] * 500).dictionary_encode()
    values, sizes = plain(array)
    assert len({id(value) for value in values}) == 2
    assert sizes.tolist() == [408, 9] * 500


@given(st.lists(st.none() | st.lists(st.none() | st.text(max_size=5), max_size=4), max_size=6))
def test_sizes_are_those_of_the_texts_inside(values: list[list[str | None] | None]) -> None:
    found, sizes = plain(pa.array(values, pa.list_(pa.string())))
    assert found == values
    texts = [[len((text or "").encode()) + 8 for text in row or []] for row in values]
    assert sizes.tolist() == [8 + sum(row) for row in texts]


def test_bytes_that_are_no_utf8_are_kept_and_refused_by_name() -> None:
    raw = pa.array([b"good", b"a\xff", None], pa.binary())
    text = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    values, _ = plain(text)
    assert values == ["good", "a\udcff", None]
    for record in ({"prompt": values[1]}, {"prompt": "x", "free": [values[1]]}):
        with pytest.raises(BadRecord, match="not UTF-8: byte 0xff at character") as caught:
            parse_record(record, teachers=[])
        assert caught.value.reason == "not_utf8"
