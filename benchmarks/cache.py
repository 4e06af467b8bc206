"""`cache`: bytes, error and speed of each codec, on a file of scores or on synthetic ones.

Half of the sequences teach the renumbering, the other half is measured. The error is KL(true ‖
stored) over top-64 and tail, both sides normalised as the losses do. Then shards by the thousand,
and from S3 where `AWS_ENDPOINT_URL` names a server. Shapes: T tokens, K top-k.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.kit.inputs import make_scorer
from benchmarks.kit.measure import (
    Action,
    Case,
    Result,
    Spread,
    alternate,
    headline,
    units_per_cpu_s,
)
from benchmarks.kit.shardflow import flow_case
from pipeline.scores.columns import scores_of, table_of
from pipeline.scores.scores import Scores
from pipeline.shards.codec import CODECS
from pipeline.shards.packed.renumbering import Renumbering
from pipeline.shards.scores import decode_scores, write_scores
from pipeline.teachers.teacher import Scorer
from schemas.columns import flat_values, list_lengths
from schemas.scoresignal import Signal

K = 64
VOCABULARY = 151_936
"""Ids of the synthetic data."""

TIMED_TOKENS = 100_000
"""Tokens that a timing has at least; smaller data is repeated."""

RAW_BYTES = 394.0
"""Bytes per token of int32 ids and float16 log-probabilities without any codec."""


SPEEDS = ("encode_tokens_per_cpu_s", "decode_tokens_per_cpu_s")


@dataclass(frozen=True)
class Data:
    """Scores of some sequences.

    Attributes:
        scores: of all tokens joined.
        lengths: int64 tokens of each sequence.
        vocab: ids of the vocabulary.
    """

    scores: Scores
    lengths: NDArray[np.int64]
    vocab: int

    def half(self, remainder: int) -> "Data":
        """Return every second sequence."""
        rows = np.arange(len(self.lengths)) % 2 == remainder
        tokens = np.flatnonzero(np.repeat(rows, self.lengths))
        return replace(self, scores=self.scores.take(tokens), lengths=self.lengths[rows])

    def table(self) -> pa.Table:
        """Return the score table."""
        digests = [f"{row:032x}" for row in range(len(self.lengths))]
        return table_of(digests, self.scores, self.lengths, Signal(K))


def run(*, quick: bool, seed: int, data: Path | None = None) -> Result:
    """Measure both codecs; the figures are those of the codecs, by name."""
    whole = synthetic(seed, 4_000 if quick else 40_000) if data is None else from_file(data)
    learn, test = whole.half(0), whole.half(1)
    renumbering = Renumbering.learn(learn.scores.topk_ids, vocab_size=whole.vocab)
    cases = [
        _case(codec, test, renumbering, repeats=2 if quick else 7, quick=quick) for codec in CODECS
    ]
    reference: Case = {
        "case": "reference",
        "raw_bytes_per_token": RAW_BYTES,
        "pyarrow_bytes_per_token": _defaults_bytes(test),
        "physical_bytes_per_token": _physical_bytes(learn, test),
        "tokens": int(test.lengths.sum()),
        "sequences": len(test.lengths),
    }
    names = ("bytes_per_token", "kl_mean", "kl_max", *SPEEDS)
    figures = {
        f"{str(case['case']).partition('-')[0]}_{name}": headline([case], name, max)
        for case in cases
        for name in names
    }
    codecs = {
        str(case["case"]): {name: headline([case], name, max) for name in names} for case in cases
    }
    flow = {
        codec: flow_case(_scorer(codec, test.vocab), _timed_table(test, quick=quick), quick=quick)
        for codec in CODECS
    }
    shards = {codec: _medians(case) for codec, case in flow.items()}
    cases += flow.values()
    return Result(figures, [*cases, reference], {"codecs": codecs, "shards": shards})


def from_file(path: Path) -> Data:
    """Return the scores of a file: seq, pos, src, token, lp, lse_tail, ids and lps."""
    table = pq.read_table(path)
    column = {n: table.column(n).to_numpy() for n in ("seq", "token", "lp", "lse_tail")}
    order = np.argsort(column["seq"], kind="stable")
    column = {name: values[order] for name, values in column.items()}
    ids, logprobs = (_wide(table, name)[order] for name in ("ids", "lps"))
    _, lengths = np.unique(column["seq"], return_counts=True)
    vocab = int((table.schema.metadata or {}).get(b"vocab", ids.max() + 1))
    return Data(
        _scores(ids, logprobs, column["token"], column["lp"], column["lse_tail"]), lengths, vocab
    )


def synthetic(seed: int, tokens: int) -> Data:
    """Return scores of peaked and flat positions over Zipf-distributed ids."""
    random = np.random.default_rng(seed)
    lengths = random.integers(100, 700, max(tokens // 400, 2))
    total = int(lengths.sum())
    weights = 1.0 / np.arange(1, VOCABULARY + 1)
    noise = random.gumbel(size=(total, K)) + random.gamma(2.0, 1.0, (total, 1))
    starts = np.floor(np.exp(random.uniform(0, np.log(VOCABULARY - 400), (total, K)))) - 1
    step = np.sort(random.integers(0, 400 // K, (total, K)).cumsum(axis=1), axis=1)
    ids = _distinct((starts + step).astype(np.int64))
    logits = 1.5 * noise + np.log(weights[ids])
    order = np.argsort(-logits, axis=1)
    ids, logits = np.take_along_axis(ids, order, 1), np.take_along_axis(logits, order, 1)
    tail = random.uniform(-6, -1, total)
    log_z = np.logaddexp.reduce(logits, axis=1) - np.log1p(-np.exp(tail))
    logprobs = logits - log_z[:, None]
    place = np.minimum(random.geometric(0.5, total), K) - 1
    token, rows = ids[np.arange(total), place], np.arange(total)
    return Data(_scores(ids, logprobs, token, logprobs[rows, place], tail), lengths, VOCABULARY)


def _distinct(ids: NDArray[Any]) -> NDArray[Any]:
    """Return ids that are distinct in each row: a repeated one moves to a place of its own."""
    order = np.argsort(ids, axis=1)
    ordered = np.take_along_axis(ids, order, 1)
    same = np.zeros(ids.shape, dtype=bool)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    free = VOCABULARY - 400 + np.cumsum(same, axis=1)
    ordered = np.where(same, free, ordered)
    back = np.empty_like(ids)
    np.put_along_axis(back, order, ordered, 1)
    return back


def _scores(ids: Any, logprobs: Any, token: Any, token_logprob: Any, tail: Any) -> Scores:
    """Return scores with a rank and an entropy that the top-k gives."""
    probs = np.exp(logprobs.astype(np.float64))
    is_token = ids == token[:, None]
    rank = np.where(is_token.any(axis=1), is_token.argmax(axis=1) + 1, K + 1)
    entropy = -(probs * logprobs).sum(axis=1) - np.exp(tail) * (tail - np.log(1000.0))
    return Scores(
        topk_ids=np.ascontiguousarray(ids, np.int32),
        topk_logprobs=np.ascontiguousarray(logprobs, np.float32),
        tail_logprobs=np.asarray(tail, np.float32),
        token_logprob=np.asarray(token_logprob, np.float32),
        token_rank=rank.astype(np.int32),
        entropy=np.maximum(entropy, 0).astype(np.float32),
    )


def _wide(table: pa.Table, name: str) -> NDArray[Any]:
    column = table.column(name).combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values.reshape(len(column), -1)[:, :K])


def _case(codec: str, test: Data, renumbering: Renumbering, *, repeats: int, quick: bool) -> Case:
    scorer = _scorer(codec, test.vocab)
    by = renumbering if CODECS[codec].renumbers else None
    table = test.table()
    data = write_scores(table, scorer.identity, renumbering=by)
    stored = scores_of(decode_scores(data, renumbering=by, where="the benchmark"))
    kl = divergence(test.scores, stored)
    large = _timed_table(test, quick=quick)
    tokens = int(list_lengths(large, "token_logprob").sum())
    encoded = write_scores(large, scorer.identity, renumbering=by)

    def encode() -> int:
        write_scores(large, scorer.identity, renumbering=by)
        return tokens

    def decode() -> int:
        scores_of(decode_scores(encoded, renumbering=by, where="the benchmark"))
        return tokens

    sides: Mapping[str, Action] = {"encode": encode, "decode": decode}
    timings = alternate(sides, repeats)
    return {
        "case": codec,
        "bytes_per_token": len(data) / int(test.lengths.sum()),
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        **{f"{name}_tokens_per_cpu_s": units_per_cpu_s(t) for name, t in timings.items()},
    }


def _timed_table(test: Data, *, quick: bool) -> pa.Table:
    copies = 1 if quick else max(1, -(-TIMED_TOKENS // int(test.lengths.sum())))
    return pa.concat_tables([test.table()] * copies).combine_chunks()


def _medians(case: Case) -> dict[str, float]:
    return {name: value.median for name, value in case.items() if isinstance(value, Spread)}


def divergence(exact: Scores, stored: Scores) -> NDArray[np.float64]:
    """Return KL(exact ‖ stored) in nats over top-k and tail of each position, both normalised."""
    p, q = (_normalised(scores) for scores in (exact, stored))
    with np.errstate(invalid="ignore"):
        terms = np.exp(p) * (p - q)
    return np.asarray(np.where(np.isneginf(p), 0.0, terms).sum(axis=1))


def _normalised(scores: Scores) -> NDArray[np.float64]:
    joined = np.concatenate([scores.topk_logprobs, scores.tail_logprobs[:, None]], axis=1)
    joined = joined.astype(np.float64)
    return np.asarray(joined - np.logaddexp.reduce(joined, axis=1)[:, None])


def _scorer(codec: str, vocab: int) -> Scorer:
    scorer = make_scorer(vocab=vocab, k=K)
    return replace(scorer, identity=scorer.identity.model_copy(update={"codec": codec}))


def _defaults_bytes(test: Data) -> float:
    """Return bytes per token of ids and float16 log-probabilities as pyarrow writes them."""
    table = test.table()
    logprobs = flat_values(table, "topk_logprobs").astype(np.float16)
    lists = pa.LargeListArray.from_arrays(
        table.column("topk_ids").combine_chunks().offsets, pa.array(logprobs)
    )
    sink = io.BytesIO()
    index = table.column_names.index("topk_logprobs")
    pq.write_table(table.set_column(index, "topk_logprobs", lists), sink)
    return len(sink.getvalue()) / int(test.lengths.sum())


def _physical_bytes(learn: Data, test: Data) -> float:
    """Return an estimate of the fewest bytes: entropies of the ids and of the packed steps.

    Ids by their frequency in both halves, steps by rank; 4 bytes for the exact log-probability.
    """
    both = np.concatenate([learn.scores.topk_ids, test.scores.topk_ids])
    steps = np.diff(np.rint(-32 * test.scores.topk_logprobs).astype(np.int64), axis=1, prepend=0)
    bits = K * _entropy_bits(both) + sum(_entropy_bits(steps[:, rank]) for rank in range(K))
    return float(bits / 8 + 4)


def _entropy_bits(values: NDArray[Any]) -> float:
    _, counts = np.unique(values, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
