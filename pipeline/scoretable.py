"""Score shards: from an engine's numbers to the columns of `typed-v1`, and back verified.

Promises: rows stand in the order of the rollout rows they score; each distinct sequence is read by
the teacher once; top-k log-probabilities are rounded to float16, everything else is exact float32.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.engine import LazyEngine, Scores
from pipeline.padding import token_index
from pipeline.parquet import read_table, write_table
from pipeline.scorer import Scorer
from pipeline.storage import Storage
from schemas.errors import DataError, IdentityError
from schemas.manifest import ScorerIdentity, Shard
from schemas.tables import SCORES, check_scores, flat_values, list_array, list_rows


def score_table(
    rows: pa.Table, engine: LazyEngine, identity: ScorerIdentity
) -> tuple[pa.Table, int]:
    """Return the score table of rollout rows, and the tokens that the teacher read.

    Raises:
        DataError: the teacher returned a NaN or another impossible number.
    """
    digests = np.array(rows.column("sequence_digest").to_pylist(), dtype=object)
    _, first, inverse = np.unique(digests.astype(str), return_index=True, return_inverse=True)
    prompts, responses = list_rows(rows, "prompt_ids"), list_rows(rows, "response_ids")
    lengths = np.array([len(r) for r in responses], dtype=np.int64)
    if not len(first):
        return _empty(), 0
    distinct = [prompts[i] for i in first], [responses[i] for i in first]
    k, vocab_size = identity.signal["k"], identity.vocab_size
    _check_ids(rows, engine.get().vocab_size)
    scores = engine.get().score(*distinct, k=k, vocab_size=vocab_size)
    scores.check(vocab_size=vocab_size, where="scoring")
    scores = scores.take(token_index(lengths[first], inverse))
    tokens = sum(len(p) + len(r) for p, r in zip(*distinct, strict=True))
    return _table(digests.tolist(), scores, lengths, k), tokens


def write_scores(table: pa.Table, scorer: Scorer) -> bytes:
    """Return a score table as the bytes of a shard that says whose scores they are."""
    identity = scorer.identity
    check_scores(table, k=identity.signal["k"], where="scores to be written")
    metadata = {"scorer": scorer.key, "identity": identity.model_dump(mode="json")}
    return write_table(table, metadata, token_column="token_logprob")


def read_scores(storage: Storage, shard: Shard, *, scorer: str) -> pa.Table:
    """Return the rows of a score shard, verified.

    Raises:
        DataError: the object is missing, corrupt or misshapen.
        IdentityError: it holds the scores of another scorer.
    """
    where = storage.url(shard.key)
    table, metadata = read_table(storage.read_shard(shard), where=where)
    if metadata.get("scorer") != scorer:
        raise IdentityError(
            f"{where} holds scores of scorer {metadata.get('scorer')}, expected {scorer}: they are "
            "of another teacher, signal or engine version. Run `opd score` for this run again"
        )
    check_scores(table, k=int(metadata["identity"]["signal"]["k"]), where=where)
    if table.num_rows != shard.rows:
        raise DataError(f"{where} has {table.num_rows} rows, its commit says {shard.rows}")
    return table


def _check_ids(rows: pa.Table, vocab_size: int) -> None:
    for name in ("prompt_ids", "response_ids"):
        highest = int(flat_values(rows, name).max(initial=0))
        if highest >= vocab_size:
            raise DataError(
                f"a rollout holds id {highest} in {name!r}, but the teacher's vocabulary ends at "
                f"{vocab_size - 1}: it cannot read the sequence"
            )


def _table(digests: list[str], scores: Scores, lengths: NDArray[np.int64], k: int) -> pa.Table:
    flat = {
        "topk_ids": (scores.topk_ids.reshape(-1), lengths * k),
        "topk_logprobs": (scores.topk_logprobs.reshape(-1).astype(np.float16), lengths * k),
        "tail_logprobs": (scores.tail, lengths),
        "token_logprob": (scores.token_logprob, lengths),
        "token_rank": (scores.token_rank, lengths),
        "entropy": (scores.entropy, lengths),
    }
    columns = {
        name: list_array(values, counts, SCORES.field(name).type)
        for name, (values, counts) in flat.items()
    }
    return pa.table({"sequence_digest": digests, **columns}, schema=SCORES)


def _empty() -> pa.Table:
    return SCORES.empty_table()
