"""Both codecs: any valid scores come back within the stated bounds, others are refused."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scores.columns import scores_of, table_of
from pipeline.scores.scores import Scores
from pipeline.shards.codec import CODECS, codec_named
from pipeline.shards.packed.quantization import COARSE, FINE
from pipeline.shards.packed.renumbering import MAX_VOCABULARY, Renumbering
from schemas.columns import flat_values, list_lengths
from schemas.errors import DataError
from schemas.scoresignal import Signal
from schemas.tables import check_ids
from tests.support.anyscores import make_scores, signals, through

each_codec = pytest.mark.parametrize("codec", CODECS)


def assert_close(found: Any, exact: Any, bound: Any) -> None:
    infinite = np.isneginf(exact)
    np.testing.assert_array_equal(np.isneginf(found), infinite)
    assert (np.abs(found[~infinite] - exact[~infinite]) <= bound[~infinite]).all()


def bound_of(codec: str, exact: Any, *, drop: int = FINE) -> Any:
    """Return the bound that the documentation states, nats."""
    size = np.abs(np.where(np.isneginf(exact), 0, exact))
    if codec == "typed-v1":
        return np.where(size > 65504, size, size * 2.0**-11 + 2.0**-25)
    return (size + 2) * (2.0 ** (drop - 24) + 2.0**-22)


def assert_bounds(codec: str, found: Scores, exact: Scores) -> None:
    for name in ("topk_ids", "token_rank", "token_logprob", "candidate_ids", "draw_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(exact, name), err_msg=name)
    for name in ("topk_logprobs", "candidate_logprobs"):
        value = getattr(exact, name)
        if value is not None:
            assert_close(getattr(found, name), value, bound_of(codec, value))
    if codec == "typed-v1":
        np.testing.assert_array_equal(found.tail_logprobs, exact.tail_logprobs)
        np.testing.assert_array_equal(found.entropy, exact.entropy)
        return
    drop = FINE if exact.tail_logprobs.ndim == 1 else COARSE
    assert_close(
        found.tail_logprobs, exact.tail_logprobs, bound_of(codec, exact.tail_logprobs, drop=drop)
    )
    assert (found.entropy is None) == (exact.entropy is None)
    if exact.entropy is not None:
        bound = bound_of(codec, exact.entropy, drop=COARSE)
        assert_close(found.entropy, exact.entropy, bound)


@each_codec
@settings(max_examples=60, deadline=None)
@given(signals(), st.lists(st.integers(1, 9), max_size=6), st.integers(0, 2**32))
def test_scores_come_back_within_their_bounds(
    codec: str, shape: tuple[Signal, int], lengths: list[int], seed: int
) -> None:
    signal, vocab = shape
    random = np.random.default_rng(seed)
    exact = make_scores(random, sum(lengths), signal, vocab)
    by = None
    if vocab < MAX_VOCABULARY and random.random() < 0.5:
        by = Renumbering.learn(exact.topk_ids[exact.topk_ids >= 0], vocab_size=vocab)
    digests = [f"{row:032x}" for row in range(len(lengths))]
    table = table_of(digests, exact, np.array(lengths, np.int64), signal)
    back = through(codec, table, signal, vocab, by=by)
    assert back.column("sequence_digest").to_pylist() == digests
    assert list_lengths(back, "token_logprob").tolist() == lengths
    if lengths:
        full = scores_of(back)
        width = full.topk_ids.shape[1]
        assert_bounds(codec, full, trimmed(exact, width))
        assert_sample(codec, back, table, signal)
    assert through(codec, back, signal, vocab, by=by).equals(back)


def assert_sample(codec: str, back: pa.Table, table: pa.Table, signal: Signal) -> None:
    if not signal.sample:
        return
    for name in ("sample_ids", "sample_count"):
        np.testing.assert_array_equal(flat_values(back, name), flat_values(table, name))
    exact = flat_values(table, "sample_logprobs")
    assert_close(flat_values(back, "sample_logprobs"), exact, bound_of(codec, exact))


def trimmed(scores: Scores, width: int) -> Scores:
    assert (scores.topk_ids[:, width:] < 0).all()
    kept = {name: getattr(scores, name)[:, :width] for name in ("topk_ids", "topk_logprobs")}
    return Scores(**{**vars(scores), **kept})


@each_codec
@settings(max_examples=60, deadline=None)
@given(signals(), st.lists(st.integers(1, 9), max_size=6), st.integers(0, 2**32))
def test_what_was_read_is_stored_by_the_same_bytes(
    codec: str, shape: tuple[Signal, int], lengths: list[int], seed: int
) -> None:
    signal, vocab = shape
    exact = make_scores(np.random.default_rng(seed), sum(lengths), signal, vocab)
    by = None
    if vocab < MAX_VOCABULARY and seed % 2:
        by = Renumbering.learn(exact.topk_ids[exact.topk_ids >= 0], vocab_size=vocab)
    digests = [f"{row:032x}" for row in range(len(lengths))]
    table = table_of(digests, exact, np.array(lengths, np.int64), signal)
    coder = CODECS[codec]
    kwargs: dict[str, Any] = {"signal": signal, "vocab_size": vocab, "renumbering": by}
    stored = coder.encode(table, **kwargs)
    back = coder.decode(stored, **kwargs, where="x")
    assert coder.encode(back, **kwargs).equals(stored)


@each_codec
def test_a_long_response_comes_back(codec: str) -> None:
    signal, random = Signal(3), np.random.default_rng(0)
    lengths = np.array([1, 100_000, 2])
    exact = make_scores(random, int(lengths.sum()), signal, 70_000)
    back = through(codec, table_of(["a", "b", "c"], exact, lengths, signal), signal, 70_000)
    assert_bounds(codec, scores_of(back), exact)


@each_codec
def test_a_slice_is_stored_by_its_own_rows(codec: str) -> None:
    signal, random = Signal(4, top_p=0.5, draws=3), np.random.default_rng(1)
    exact = make_scores(random, 12, signal, 50)
    table = table_of(["a", "b", "c"], exact, np.array([5, 3, 4]), signal)
    whole = through(codec, table, signal, 50)
    assert through(codec, table.slice(1), signal, 50).equals(whole.slice(1))
    joined = pa.concat_tables([table.slice(2), table.slice(0, 2)])
    assert through(codec, joined, signal, 50).equals(whole.take([2, 0, 1]))


def test_ids_take_16_bits_where_the_vocabulary_allows() -> None:
    exact = make_scores(np.random.default_rng(0), 2, Signal(2), 9)
    table = table_of(["a"], exact, np.array([2]), Signal(2))
    for vocab, kind in ((65536, pa.uint16()), (65537, pa.int32())):
        stored = CODECS["typed-v1"].encode(
            table, signal=Signal(2), vocab_size=vocab, renumbering=None
        )
        assert stored.schema.field("topk_ids").type.value_type == kind


def test_a_codec_of_a_newer_opd_is_named() -> None:
    for name in ("packed-v2", None, 3):
        with pytest.raises(DataError, match=f"store/x is stored by codec {name!r}.*newer opd"):
            codec_named(name, where="store/x")


@each_codec
def test_an_id_outside_the_vocabulary_is_refused_on_the_way_back(codec: str) -> None:
    signal = Signal(2)
    exact = make_scores(np.random.default_rng(0), 30, signal, 500)
    table = table_of(["a"], exact, np.array([30]), signal)
    stored = CODECS[codec].encode(table, signal=signal, vocab_size=500, renumbering=None)
    with pytest.raises(DataError, match="store/x.*'topk_ids'.*outside \\[0, 100\\)"):
        back = CODECS[codec].decode(
            stored, signal=signal, vocab_size=100, renumbering=None, where="store/x"
        )
        check_ids(back, 100, where="store/x")
