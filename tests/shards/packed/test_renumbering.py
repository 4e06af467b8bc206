"""Renumberings of a vocabulary come back from their bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.packed.renumbering import MAX_VOCABULARY, Renumbering
from schemas.errors import DataError
from schemas.fingerprint import sha256


@given(st.lists(st.integers(0, 49), max_size=80), st.integers(0, 3))
def test_a_renumbering_is_by_frequency_and_comes_back_from_its_bytes(
    ids: list[int], spare: int
) -> None:
    table = Renumbering.learn(np.array(ids, np.int64), vocab_size=50 + spare)
    assert sorted(table.ids_V.tolist()) == list(range(50 + spare))
    assert (table.numbers_V[table.ids_V] == np.arange(50 + spare)).all()
    counts = np.bincount(np.array(ids, np.int64), minlength=50 + spare)[table.ids_V]
    assert (np.diff(counts) <= 0).all()
    back = Renumbering.from_bytes(table.to_bytes(), where="x")
    assert back.ids_V.tolist() == table.ids_V.tolist()
    assert back.digest == table.digest == sha256(table.to_bytes())


@pytest.mark.parametrize("words", [[], [0], [3, 3], [3, 1, 1], [MAX_VOCABULARY + 1]])
def test_bytes_that_are_no_renumbering_are_named(words: list[int]) -> None:
    with pytest.raises(DataError, match="store/x is not a renumbering"):
        Renumbering.from_bytes(np.array(words, "<u4").tobytes(), where="store/x")
