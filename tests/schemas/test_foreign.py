"""Text of others as messages may have it: printable, bounded, without secrets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.foreign import HIDDEN, SHOWN, excerpt, excerpt_end, printable, shown, without_secrets
from tests.support.badcases import CONTROL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a[/b]c – ±\u00a0日本", "a[/b]c – ±\u00a0日本"),
        ("\x1b[31m\a\b\r\x9b", "\\x1b[31m\\x07\\x08\\r\\x9b"),
        ("\u202e\u2066\u200b\ufeff", "\\u202e\\u2066\\u200b\\ufeff"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\udcff", "\\udcff"),
    ],
)
def test_a_terminal_obeys_no_character_of_others(text: str, expected: str) -> None:
    assert printable(text) == expected


@given(st.text())
def test_no_text_has_control_characters_left(text: str) -> None:
    for made in (printable(text), printable(text, lines=True), shown(text)):
        assert CONTROL.findall(made) == []
        made.encode()
    assert "\n" not in printable(text)


@pytest.mark.parametrize(
    "text",
    [
        "failed: s3://KEY:hunter2@bucket/x of a run",
        "s3://KEY:hunt/er2@bucket",
        "GET https://host/x?sig=hunter2 failed",
        "'http://hunter2@host'",
    ],
)
def test_urls_lose_their_secrets(text: str) -> None:
    assert "hunt" not in without_secrets(text)


@pytest.mark.parametrize("text", ["s3://bucket/a@b/c", "me@host", "http://host:80/x", "a?b=c"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, "0.5"),
        (2**5000, "a whole number of 5001 bits"),
        ([1, "a"], "[1, 'a']"),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, …]"),
        ({"b": 1, "a": {"c": None}}, "{'b': 1, 'a': {'c': None}}"),
        ({"key": "sk-" + "x" * 40}, f"{{'key': {HIDDEN}}}"),
        ("sk-" + "x" * 40, HIDDEN),
        ("Abc4" * 10, HIDDEN),
        ("Abc4" * 9, f"'{'Abc4' * 9}'"),
    ],
)
def test_a_value_is_shown_short_and_without_secrets(value: object, expected: str) -> None:
    assert shown(value) == expected


def test_a_long_or_deep_value_is_cut() -> None:
    assert len(shown("x" * 10**6)) < 200
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep).startswith("[[[")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    )
)
def test_any_value_is_one_short_line(value: object) -> None:
    found = shown(value)
    assert CONTROL.findall(found) == [] and "\n" not in found and len(found) <= SHOWN + 1


@given(st.text(max_size=60))
def test_an_excerpt_is_one_bounded_line(text: str) -> None:
    for found in (excerpt(text, 20), excerpt_end(text, 20)):
        assert CONTROL.findall(found) == [] and "\n" not in found
        assert len(found) <= 20 * len("\\U0010ffff") + 1


def test_an_excerpt_has_the_beginning_or_the_end() -> None:
    assert excerpt("abc\ndef", 5) == "abc\\nd…"
    assert excerpt_end("abc\ndef", 5) == "…c\\ndef"
