"""Strict JSON: what a stranger may put into it is refused before it is looked at."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import strictjson
from schemas.strictjson import LEAST, MAX_DEPTH, MOST, StrictJSONError, parse_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(LEAST, MOST)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_what_json_writes_is_read_as_it_was(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON at character 0"),
        (b"{} {}", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": 1, "a": 1}', "a name stands in it twice"),
        (b'[{"b": {"a": 1, "a": 2}}]', "a name stands in it twice"),
        (b"[NaN]", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "too large"),
        (str(MOST + 1).encode(), "beyond 64 bits"),
        (str(LEAST - 1).encode(), "beyond 64 bits"),
        (b"9" * 10_000, "beyond 64 bits"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
    ],
    ids=lambda given: str(given)[:20],
)
def test_what_is_no_json_of_opd_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(StrictJSONError, match=words):
        parse_json(data)


def test_many_brackets_beside_one_another_are_not_deep() -> None:
    assert len(parse_json(b"[" + b"{}," * 500 + b"{}]")) == 501


def test_what_is_too_large_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strictjson, "MAX_BYTES", 10)
    assert parse_json(b"[1,2,3,45]")
    with pytest.raises(StrictJSONError, match="it has 11 bytes"):
        parse_json(b"[1,2,3,456]")
