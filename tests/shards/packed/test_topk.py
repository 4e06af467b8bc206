"""The packed top-k: in pieces as at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scores.columns import table_of
from pipeline.shards.packed import topk
from schemas.scoresignal import Signal
from tests.support.anyscores import make_scores, signals, through


@settings(max_examples=60, deadline=None)
@given(signals(), st.lists(st.integers(1, 9), max_size=9), st.integers(0, 2**32))
def test_what_is_packed_in_pieces_is_what_is_packed_at_once(
    drawn: tuple[Signal, int], lengths: list[int], seed: int
) -> None:
    signal, vocab = drawn
    exact = make_scores(np.random.default_rng(seed), sum(lengths), signal, vocab)
    digests = [str(row) for row in range(len(lengths))]
    table = table_of(digests, exact, np.array(lengths, np.int64), signal)
    whole = through("packed-v1", table, signal, vocab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "PIECE_ENTRIES", 12)
        found = through("packed-v1", table, signal, vocab)
    assert found.combine_chunks().equals(whole.combine_chunks())
