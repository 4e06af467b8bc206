"""Valid score tables of every shape, from a seed: what codecs and shards are fuzzed with."""

from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.scores.columns import table_of
from pipeline.scores.scores import Scores
from pipeline.shards.packed.renumbering import Renumbering
from pipeline.shards.scores import write_scores
from schemas.records.scores import ScorerIdentity
from schemas.scoresignal import Signal

SCORER = ScorerIdentity(
    model={"name": "fuzz"},
    engine="hf",
    engine_version="0",
    dtype="float32",
    quantization=None,
    tokenizer="t",
    template=None,
    vocab_size=300,
    codec="packed-v1",
    signal={"k": 3},
)


def any_table(random: Random) -> tuple[pa.Table, Signal, int, Renumbering | None]:
    """Return a score table, its signal, its vocabulary, and a renumbering or none."""
    vocab = random.choice((1, 5, 300, 65537))
    sample = random.choice((0, 0, 3))
    k = random.randint(0 if sample else 1, min(vocab, 9))
    candidates = random.choice((0, 2))
    signal = Signal(
        k=k,
        top_p=random.choice((None, 0.9)) if k else None,
        sample=sample,
        tail_buckets=random.choice((1, 3)),
        candidates=candidates,
        uneven=candidates > 0 and random.random() < 0.5,
        draws=random.choice((0, 4)),
        temperatures=random.choice(((), (2.0, 0.5))),
        entropy=random.random() < 0.5,
    )
    lengths = np.array([random.randint(1, 9) for _ in range(random.randrange(1, 5))])
    scores = _scores(np.random.default_rng(random.getrandbits(32)), lengths.sum(), signal, vocab)
    digests = [f"{row:032x}" for row in range(len(lengths))]
    by = None
    if random.random() < 0.5:
        by = Renumbering.learn(scores.topk_ids[scores.topk_ids >= 0], vocab_size=vocab)
    return table_of(digests, scores, lengths, signal), signal, vocab, by


def score_shard(random: Random) -> bytes:
    """Return the bytes of a shard of `SCORER`, in either codec."""
    signal, lengths = Signal.of(SCORER.signal), np.array([3, 1, random.randint(1, 30)])
    generator = np.random.default_rng(random.getrandbits(32))
    scores = _scores(generator, lengths.sum(), signal, SCORER.vocab_size)
    codec = random.choice(("typed-v1", "packed-v1"))
    table = table_of(["a", "b", "c"], scores, lengths, signal)
    return write_scores(table, SCORER.model_copy(update={"codec": codec}))


def _logprobs(random: np.random.Generator, *shape: int) -> Any:
    drawn = -random.exponential(4, shape).astype(np.float32)
    edges = np.array([0.0, -2.0, -1e5, -np.inf], np.float32)
    return np.where(random.random(shape) < 0.1, random.choice(edges, shape), drawn)


def _scores(random: np.random.Generator, tokens: int, signal: Signal, vocab: int) -> Scores:
    ids = random.integers(0, vocab, (tokens, signal.k)).astype(np.int32)
    top = -np.sort(-_logprobs(random, *ids.shape), axis=1)
    if signal.ragged:
        count = random.integers(signal.min_k, signal.k + 1, tokens)
        cut = np.arange(signal.k) >= count[:, None]
        ids, top = np.where(cut, -1, ids).astype(np.int32), np.where(cut, -np.inf, top)
    buckets, draws = signal.tail_buckets, signal.draws
    drawn = random.integers(0, min(vocab, 9), (tokens, draws)).astype(np.int32)
    return Scores(
        topk_ids=ids,
        topk_logprobs=top.astype(np.float32),
        tail_logprobs=_logprobs(random, *((tokens,) if buckets == 1 else (tokens, buckets))),
        token_logprob=_logprobs(random, tokens),
        token_rank=random.integers(1, vocab + 1, tokens).astype(np.int32),
        entropy=random.uniform(0, 16, tokens).astype(np.float32) if signal.entropy else None,
        **_candidates(random, tokens, signal, vocab),
        draw_ids=np.sort(drawn) if draws else None,
        **_sample(random, tokens, signal.sample, vocab),
        further=_normalisers(random, tokens, len(signal.temperatures)),
    )


def _candidates(
    random: np.random.Generator, tokens: int, signal: Signal, vocab: int
) -> dict[str, Any]:
    some = signal.candidates
    if not some:
        return {}
    least = 1 if signal.uneven else some
    own = np.arange(some) < random.integers(least, some + 1, (tokens, 1))
    ids, logprobs = random.integers(0, vocab, own.shape), _logprobs(random, *own.shape)
    return {
        "candidate_ids": np.where(own, ids, -1).astype(np.int32),
        "candidate_logprobs": np.where(own, logprobs, -np.inf).astype(np.float32),
    }


def _normalisers(random: np.random.Generator, tokens: int, count: int) -> dict[str, Any]:
    if not count:
        return {}
    return {"log_normalisers": random.normal(0, 20, (tokens, count)).astype(np.float32)}


def _sample(random: np.random.Generator, tokens: int, places: int, vocab: int) -> dict[str, Any]:
    if not places:
        return {}
    own = np.arange(places) < random.integers(0, places + 1, (tokens, 1))
    ranked = -np.sort(-_logprobs(random, *own.shape), axis=1)
    return {
        "sample_ids": np.where(own, random.integers(0, vocab, own.shape), -1).astype(np.int32),
        "sample_logprobs": np.where(own, ranked, -np.inf).astype(np.float32),
        "sample_threshold": _logprobs(random, tokens).astype(np.float32),
    }
