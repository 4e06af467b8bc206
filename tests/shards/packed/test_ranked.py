"""Packed ranks: its columns one entry after the other, and in pieces as at once."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scores.columns import table_of
from pipeline.shards.packed import ranked
from pipeline.shards.packed.quantization import FINE, levels, values
from schemas.columns import list_array
from schemas.errors import DataError
from schemas.scoresignal import Signal
from tests.support.anyscores import make_scores, signals, through

LEVEL = st.integers(0, 40) | st.integers(0, 3000)
ENTRY = st.tuples(st.integers(0, 2**20), LEVEL)
TOKEN = st.lists(ENTRY, max_size=5).map(lambda t: list(zip(*t, strict=True)) or [(), ()])
ROWS = st.lists(st.lists(TOKEN, min_size=1, max_size=4), max_size=5)


def columns_of(rows: list[list[list[tuple[int, ...]]]]) -> tuple[pa.Table, dict[str, Any]]:
    """Return the stored columns of rows of tokens of (numbers, levels), and what they are of."""
    tokens = [(list(ids), sorted(found)) for row in rows for ids, found in row]
    per_token = np.array([len(ids) for ids, _ in tokens], np.int64)
    entries = np.array([sum(len(ids) for ids, _ in row) for row in rows], np.int64)
    exact: dict[str, Any] = {
        "numbers": np.array([i for ids, _ in tokens for i in ids], np.int32),
        "levels": np.array([level for _, found in tokens for level in found], np.int32),
        "per_token": per_token,
    }
    logprobs = values(exact["levels"], drop=FINE)
    stored = ranked.encode("topk", exact["numbers"], logprobs, entries=entries, per_token=per_token)
    lengths = np.array([len(row) for row in rows], np.int64)
    token_column = list_array(np.zeros(len(tokens)), lengths, pa.list_(pa.float32()))
    return pa.table({**stored, "token_logprob": token_column}), exact


@settings(max_examples=40)
@given(ROWS)
def test_ids_and_levels_come_back_from_their_columns(
    rows: list[list[list[tuple[int, ...]]]],
) -> None:
    table, exact = columns_of(rows)
    ids, logprobs = ranked.decode(
        "topk", table, lambda n: n + 1, per_token=exact["per_token"], where="x"
    )
    assert ids.tolist() == (exact["numbers"] + 1).tolist()
    assert levels(logprobs, drop=FINE).tolist() == exact["levels"].tolist()


@settings(max_examples=40)
@given(ROWS)
def test_a_step_is_half_a_byte_and_what_exceeds_it_stands_apart(
    rows: list[list[list[tuple[int, ...]]]],
) -> None:
    table, _ = columns_of(rows)
    for place, row in enumerate(rows):
        found = [sorted(level) for _, level in row]
        steps = [b - a for token in found for a, b in pairwise([0, *token])]
        padded = [min(step, ranked.ESCAPE) for step in steps] + [0] * (len(steps) % 2)
        halves = bytes(a + 16 * b for a, b in zip(padded[::2], padded[1::2], strict=True))
        assert table["topk_steps"][place].as_py() == halves
        long = sum(step >= ranked.ESCAPE for step in steps)
        assert len(table["topk_long_steps"][place].as_py()) == long


def test_one_width_for_all_tokens_is_the_same_width_for_each() -> None:
    random = np.random.default_rng(0)
    numbers = random.integers(0, 999, 24, dtype=np.int32)
    logprobs = -np.sort(random.exponential(3, (8, 3)), axis=1).astype(np.float32).reshape(-1)
    entries = np.array([15, 0, 9])
    one = ranked.encode("topk", numbers, logprobs, entries=entries, per_token=3)
    each = ranked.encode("topk", numbers, logprobs, entries=entries, per_token=np.full(8, 3))
    assert pa.table(one).equals(pa.table(each))
    ids, found = ranked.decode("topk", pa.table(one), lambda n: n, per_token=3, where="x")
    assert ids.tolist() == numbers.tolist()
    assert levels(found, drop=FINE).tolist() == levels(logprobs, drop=FINE).tolist()


def test_a_rank_that_is_more_likely_than_the_one_before_is_refused() -> None:
    numbers, entries = np.arange(4, dtype=np.int32), np.array([4])
    falling = np.array([-1.0, -2.0, -0.5, -3.0], np.float32)
    assert ranked.encode(
        "topk", numbers, falling, entries=entries, per_token=2
    )  # a new token may begin higher
    with pytest.raises(DataError, match="not in rank order"):
        ranked.encode("topk", numbers, falling, entries=entries, per_token=4)


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
        patch.setattr(ranked, "PIECE_ENTRIES", 12)
        found = through("packed-v1", table, signal, vocab)
    assert found.combine_chunks().equals(whole.combine_chunks())
