"""Foreign values in messages: printable, short, and written without taking much memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.wording import LONGEST_TEXT, LONGEST_VALUE, readable, shown

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(ANY)
def test_a_value_is_one_short_printable_line(value: object) -> None:
    found = shown(value)
    assert found.isprintable() and len(found) <= LONGEST_VALUE + 1


@given(st.text(st.characters(), max_size=2 * LONGEST_TEXT))
def test_a_text_is_one_short_printable_line(text: str) -> None:
    assert readable(text).isprintable()
    if text.isprintable() and len(text) <= LONGEST_TEXT:
        assert readable(text) == text


@pytest.mark.parametrize("value", [1, "a'b", [1, "x"], {"a": {"b": None}}, (1, 2), None, -0.5])
def test_a_small_value_is_written_as_python_writes_it(value: object) -> None:
    assert shown(value) == repr(value)


def test_what_python_would_not_write_is_described() -> None:
    assert shown(10**5000).startswith("a number of 16610 bits")
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep).startswith("[[[[[")
    assert shown("a" * 10**6) == "'" + "a" * (LONGEST_VALUE - 1) + "…"
