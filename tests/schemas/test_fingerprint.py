"""Digests: equal values agree everywhere, and every changed ingredient is another digest."""

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.fingerprint import DIGEST_CHARS, canonical_json, fingerprint, sequence_digest, sha256
from schemas.randomness import derived_seed

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6)


def test_digests_are_the_same_for_ever() -> None:
    # from sha256sum and struct.pack, not from this code
    assert fingerprint({"b": [1, None], "a": "é"}) == "3d92f6368f93f3cb36a4e7a721098054"
    assert sequence_digest([1, 2], [3]) == "4fc021cf0ccf0caa69995e584afb3301"
    assert derived_seed("rollout", 1) == 2908248441732433288


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))


@given(JSON, JSON)
def test_different_json_has_a_different_digest(one: Any, two: Any) -> None:
    assert (canonical_json(one) == canonical_json(two)) == (fingerprint(one) == fingerprint(two))


def test_absent_null_zero_and_empty_are_all_different() -> None:
    values: list[Any] = [{}, {"a": None}, {"a": 0}, {"a": 0.0}, {"a": ""}, {"a": False}, {"a": []}]
    assert len({fingerprint(value) for value in values}) == len(values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_json_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"x": [value]})


@given(IDS, IDS, IDS, IDS)
def test_sequences_share_a_digest_only_when_they_are_equal(
    prompt: list[int], response: list[int], other_prompt: list[int], other_response: list[int]
) -> None:
    same = (prompt, response) == (other_prompt, other_response)
    found = sequence_digest(prompt, response) == sequence_digest(other_prompt, other_response)
    assert found == same


def test_the_boundary_between_prompt_and_response_counts() -> None:
    splits = {sequence_digest([1, 2, 3][:cut], [1, 2, 3][cut:]) for cut in range(4)}
    assert len(splits) == 4


def test_lists_and_arrays_of_any_integer_type_agree() -> None:
    expected = sequence_digest([1, 70000], [3])
    for kind in (np.int32, np.int64, np.uint32):
        assert sequence_digest(np.array([1, 70000], kind), np.array([3], kind)) == expected


def test_a_digest_of_bytes_is_plain_sha256() -> None:
    assert sha256(b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert len(fingerprint("x")) == DIGEST_CHARS


def test_seeds_depend_on_every_part_and_on_their_order() -> None:
    seeds = {derived_seed(*parts) for parts in [(1, 2), (2, 1), (1,), (1, "2"), ("1", 2), (12,)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
