"""Both codecs: any valid scores come back within the stated bounds, and damage is named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scores.columns import scores_of, table_of
from pipeline.scores.scores import Scores
from pipeline.shards.codec import CODECS, check_ids, codec_named
from pipeline.shards.packed import topk
from pipeline.shards.packed.quantization import COARSE, FINE, levels, values
from pipeline.shards.packed.renumbering import MAX_VOCABULARY, Renumbering
from pipeline.shards.packed.varints import LIMIT, decode, encode
from pipeline.shards.parquet import read_table, write_table
from schemas.columns import list_lengths
from schemas.errors import DataError
from schemas.fingerprint import sha256
from schemas.scoresignal import Signal
from schemas.tables import check_scores

INF = float("inf")
EDGES = np.array([9e-4, 0.0, -1e-7, -0.5, -2.0, -30.0, -1e5, -INF], np.float32)

each_codec = pytest.mark.parametrize("codec", CODECS)


def logprobs_like(random: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Return log-probabilities of every size, many of them equal or at an edge."""
    drawn = -random.exponential(4, shape).astype(np.float32)
    drawn = np.where(random.random(shape) < 0.3, np.round(drawn), drawn)
    return np.where(random.random(shape) < 0.1, random.choice(EDGES, shape), drawn)


def make_scores(random: np.random.Generator, tokens: int, signal: Signal, vocab: int) -> Scores:
    """Return valid scores that no model gives."""
    ids = random.integers(0, vocab, (tokens, signal.k)).astype(np.int32)
    if signal.k == vocab:
        ids = random.permuted(np.tile(np.arange(vocab, dtype=np.int32), (tokens, 1)), axis=1)
    top = -np.sort(-logprobs_like(random, ids.shape), axis=1)
    if signal.ragged:
        count = random.integers(signal.min_k, signal.k + 1, tokens)
        cut = np.arange(signal.k) >= count[:, None]
        ids, top = np.where(cut, -1, ids), np.where(cut, -INF, top)
    buckets, n, d = signal.tail_buckets, signal.candidates, signal.draws
    return Scores(
        topk_ids=ids.astype(np.int32),
        topk_logprobs=top.astype(np.float32),
        tail=logprobs_like(random, (tokens,) if buckets == 1 else (tokens, buckets)),
        token_logprob=logprobs_like(random, (tokens,)),
        token_rank=random.integers(1, vocab + 1, tokens).astype(np.int32),
        entropy=random.uniform(0, 16, tokens).astype(np.float32) if signal.entropy else None,
        candidate_ids=random.integers(0, vocab, (tokens, n)).astype(np.int32) if n else None,
        candidate_logprobs=logprobs_like(random, (tokens, n)) if n else None,
        draw_ids=np.sort(random.integers(0, min(vocab, 9), (tokens, d))).astype(np.int32)
        if d
        else None,
    )


def through(codec: str, table: pa.Table, signal: Signal, vocab: int, **kwargs: Any) -> pa.Table:
    """Return a table after its way through Parquet."""
    coder = CODECS[codec]
    check_scores(table, signal=signal, where="x")
    stored = coder.encode(table, signal=signal, vocab_size=vocab, renumbering=kwargs.get("by"))
    data = write_table(stored, {}, token_column="token_logprob")
    back, _ = read_table(data, where="x")
    back = coder.decode(
        back, signal=signal, vocab_size=vocab, renumbering=kwargs.get("by"), where="x"
    )
    check_scores(back, signal=signal, where="x")
    check_ids(back, vocab, where="x")
    return back


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
        np.testing.assert_array_equal(found.tail, exact.tail)
        np.testing.assert_array_equal(found.entropy, exact.entropy)
        return
    drop = FINE if exact.tail.ndim == 1 else COARSE
    assert_close(found.tail, exact.tail, bound_of(codec, exact.tail, drop=drop))
    assert (found.entropy is None) == (exact.entropy is None)
    if exact.entropy is not None:
        bound = bound_of(codec, exact.entropy, drop=COARSE)
        assert_close(found.entropy, exact.entropy, bound)


@st.composite
def signals(draw: st.DrawFn) -> tuple[Signal, int]:
    vocab = draw(st.sampled_from([1, 2, 5, 300, 65536, 65537, MAX_VOCABULARY]))
    k = vocab if vocab < 9 and draw(st.booleans()) else draw(st.integers(1, min(vocab, 20)))
    ragged = draw(st.booleans())
    signal = Signal(
        k=k,
        top_p=0.9 if ragged else None,
        min_k=draw(st.integers(1, k)) if ragged else 1,
        tail_buckets=draw(st.sampled_from([1, 1, 3, 64])),
        candidates=draw(st.sampled_from([0, 0, 1, 4])),
        draws=draw(st.sampled_from([0, 0, 1, 7])),
        entropy=draw(st.booleans()),
    )
    return signal, vocab


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
    assert through(codec, back, signal, vocab, by=by).equals(back)


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


def test_scores_out_of_rank_order_are_not_packed() -> None:
    signal = Signal(2)
    scores = make_scores(np.random.default_rng(0), 3, signal, 9)
    scores.topk_logprobs[1] = [-3.0, -1.0]
    table = table_of(["a"], scores, np.array([3]), signal)
    with pytest.raises(DataError, match="not in rank order"):
        through("packed-v1", table, signal, 9)


def test_a_codec_of_a_newer_opd_is_named() -> None:
    for name in ("packed-v2", None, 3):
        with pytest.raises(DataError, match=f"store/x is stored by codec {name!r}.*newer opd"):
            codec_named(name, where="store/x")


def packed(vocab: int = 1000) -> tuple[pa.Table, Signal]:
    signal = Signal(5, top_p=0.5, tail_buckets=2)
    exact = make_scores(np.random.default_rng(3), 40, signal, vocab)
    table = table_of(["a", "b"], exact, np.array([30, 10]), signal)
    stored = CODECS["packed-v1"].encode(table, signal=signal, vocab_size=vocab, renumbering=None)
    return stored, signal


Change = Callable[[bytes], bytes]


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\xff", lambda b: b[:0]])
@pytest.mark.parametrize(
    "name",
    ["topk_ids", "topk_ids_more", "topk_ids_low", "topk_steps", "topk_long_steps", "topk_count"],
)
def test_bytes_that_do_not_fit_together_are_refused(name: str, change: Change) -> None:
    stored, signal = packed()
    values = stored.column(name).to_pylist()
    if change(values[0]) == values[0]:
        pytest.skip("there is nothing to remove")
    values[0] = change(values[0])
    index = stored.column_names.index(name)
    field = stored.schema.field(name)
    broken = stored.set_column(index, field, pa.array(values, field.type))
    with pytest.raises(DataError, match="^store/x"):
        table = CODECS["packed-v1"].decode(
            broken, signal=signal, vocab_size=1000, renumbering=None, where="store/x"
        )
        check_scores(table, signal=signal, where="store/x")


def test_a_position_without_a_top_k_is_refused() -> None:
    stored, signal = packed()
    counts = np.frombuffer(stored.column("topk_count").to_pylist()[1], np.uint8).copy()
    counts[-2:] = [counts[-2:].sum(), 0]  # the row still has as many ids as its counts say
    values = [stored.column("topk_count").to_pylist()[0], counts.tobytes()]
    index, field = stored.column_names.index("topk_count"), stored.schema.field("topk_count")
    broken = stored.set_column(index, field, pa.array(values, field.type))
    with pytest.raises(DataError, match="store/x.*top-k ids"):
        CODECS["packed-v1"].decode(
            broken, signal=signal, vocab_size=1000, renumbering=None, where="store/x"
        )


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


# --- parts of packed-v1 ---


@given(st.lists(st.lists(st.integers(0, LIMIT - 1) | st.integers(0, 300), max_size=9), max_size=5))
def test_numbers_come_back(rows: list[list[int]]) -> None:
    counts = np.array([len(row) for row in rows], np.int64)
    numbers = np.array([n for row in rows for n in row], np.int32)
    coded = encode(numbers, counts)
    assert decode(coded, counts, where="x").tolist() == numbers.tolist()
    assert coded.more_counts.sum() == len(coded.more)


@pytest.mark.parametrize("number", [-1, LIMIT])
def test_numbers_beyond_the_code_are_refused(number: int) -> None:
    with pytest.raises(DataError, match="outside"):
        encode(np.array([number], np.int32), np.array([1]))


def test_levels_grow_as_log_probabilities_fall_and_are_their_own_nearest() -> None:
    for drop in (FINE, COARSE):
        found = np.arange(4096, dtype=np.int32)
        logprobs = values(found, drop=drop)
        assert (np.diff(logprobs) < 0).all()
        assert levels(logprobs, drop=drop).tolist() == found.tolist()
    assert levels(np.array([1e-3, 0.0], np.float32), drop=FINE).tolist() == [0, 0]


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
