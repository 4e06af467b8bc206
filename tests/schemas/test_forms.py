"""Forms: what a key may look like."""

import pytest

from schemas.forms import MAX_KEY, is_key, is_part

CLEAN = ["a", "a/b", "runs/mine/run.json", "a b/ü.jsonl", ".hidden", "a/..b", "a/..."]
UNCLEAN = [
    *("", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "a/./b", "a\\b", "a\nb"),
    *("a\x00", "a\x1b[2J", "a\x7f", "a\x9b", "a\u202eb", "a\u2028b", "a\udcffb"),
    "x" * (MAX_KEY + 1),
]


@pytest.mark.parametrize("key", [*CLEAN, "x" * MAX_KEY], ids=ascii)
def test_a_clean_key_is_one(key: str) -> None:
    assert is_key(key)


@pytest.mark.parametrize("key", UNCLEAN, ids=ascii)
def test_what_climbs_ends_or_hides_is_no_key(key: str) -> None:
    assert not is_key(key)
    assert not is_part(key)


def test_a_name_of_a_listing_is_one_part() -> None:
    assert is_part("a.json") and not is_part("a/b.json")
