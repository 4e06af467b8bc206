"""Valid scores that no model gives, and their way through a codec."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from pipeline.scores.scores import Scores
from pipeline.shards.codec import CODECS
from pipeline.shards.packed.renumbering import MAX_VOCABULARY
from pipeline.shards.parquet import read_table, write_table
from schemas.scoresignal import Signal
from schemas.tables import check_ids, check_scores

INF = float("inf")
EDGES = np.array([9e-4, 0.0, -1e-7, -0.5, -2.0, -30.0, -1e5, -INF], np.float32)


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
    buckets, d = signal.tail_buckets, signal.draws
    return Scores(
        **make_sample(random, tokens, signal, vocab),
        further=make_normalisers(random, tokens, signal),
        topk_ids=ids.astype(np.int32),
        topk_logprobs=top.astype(np.float32),
        tail_logprobs=logprobs_like(random, (tokens,) if buckets == 1 else (tokens, buckets)),
        token_logprob=logprobs_like(random, (tokens,)),
        token_rank=random.integers(1, vocab + 1, tokens).astype(np.int32),
        entropy=random.uniform(0, 16, tokens).astype(np.float32) if signal.entropy else None,
        **make_candidates(random, tokens, signal, vocab),
        draw_ids=np.sort(random.integers(0, min(vocab, 9), (tokens, d))).astype(np.int32)
        if d
        else None,
    )


def make_candidates(
    random: np.random.Generator, tokens: int, signal: Signal, vocab: int
) -> dict[str, Any]:
    """Return the arrays of candidates that no model gives, where there are some."""
    n = signal.candidates
    if not n:
        return {}
    cut = np.zeros((tokens, n), bool)
    if signal.uneven:
        cut = np.arange(n) >= random.integers(1, n + 1, (tokens, 1))
        cut[: tokens // 2] = False
    ids, logprobs = random.integers(0, vocab, cut.shape), logprobs_like(random, cut.shape)
    return {
        "candidate_ids": np.where(cut, -1, ids).astype(np.int32),
        "candidate_logprobs": np.where(cut, -INF, logprobs).astype(np.float32),
    }


def make_normalisers(random: np.random.Generator, tokens: int, signal: Signal) -> dict[str, Any]:
    """Return log-normalisers that no model gives, where there are some."""
    count = len(signal.temperatures)
    drawn = random.normal(0, 20, (tokens, count)).astype(np.float32)
    return {"log_normalisers": drawn} if count else {}


def make_sample(
    random: np.random.Generator, tokens: int, signal: Signal, vocab: int
) -> dict[str, Any]:
    """Return the arrays of samples that no model gives, some of them with fewer ids."""
    if not signal.sample:
        return {}
    count = random.integers(0, signal.sample + 1, (tokens, 1))
    count[: tokens // 2] = signal.sample
    cut = np.arange(signal.sample) >= count
    ids = random.integers(0, vocab, cut.shape)
    logprobs = -np.sort(-logprobs_like(random, cut.shape), axis=1)
    return {
        "sample_ids": np.where(cut, -1, ids).astype(np.int32),
        "sample_logprobs": np.where(cut, -INF, logprobs).astype(np.float32),
        "sample_threshold": np.full(tokens, -INF, np.float32),
    }


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


@st.composite
def signals(draw: st.DrawFn) -> tuple[Signal, int]:
    vocab = draw(st.sampled_from([1, 2, 5, 300, 65536, 65537, MAX_VOCABULARY]))
    k = vocab if vocab < 9 and draw(st.booleans()) else draw(st.integers(1, min(vocab, 20)))
    sample = draw(st.sampled_from([0, 0, 1, 6]))
    k = k if not sample or draw(st.booleans()) else 0
    ragged = k > 0 and draw(st.booleans())
    candidates = draw(st.sampled_from([0, 0, 1, 4]))
    signal = Signal(
        k=k,
        top_p=0.9 if ragged else None,
        min_k=draw(st.integers(1, k)) if ragged else 1,
        tail_buckets=draw(st.sampled_from([1, 1, 3, 64])),
        candidates=candidates,
        uneven=candidates > 0 and draw(st.booleans()),
        draws=draw(st.sampled_from([0, 0, 1, 7])),
        sample=sample,
        temperatures=draw(st.sampled_from([(), (), (2.0,), (0.5, 2.0)])),
        entropy=draw(st.booleans()),
    )
    return signal, vocab
