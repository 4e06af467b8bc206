"""What a teacher reads of a round, and the score table that it gives."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.engines.lazy import LazyEngine
from pipeline.scores.candidates import candidates_of
from pipeline.scores.columns import table_of
from pipeline.shards.rollouts import read_rollout
from pipeline.store.storage import Storage
from pipeline.teachers.teacher import Scorer
from schemas.columns import Floats, flat_values, list_lengths, list_rows
from schemas.errors import DataError
from schemas.fingerprint import fingerprint
from schemas.ragged import token_index
from schemas.records.runs import RolloutManifest
from schemas.records.scores import RowSquares, ScorerIdentity
from schemas.records.shards import UnitShard
from schemas.scoresignal import Signal
from schemas.tables import SCORES


def score_fingerprint(scorer: Scorer, rollout: RolloutManifest) -> str:
    """Return the digest of a teacher's part of a round."""
    return fingerprint({"scorer": scorer.key, "rollout": rollout.fingerprint})


def unit_rows(storage: Storage, unit: UnitShard, scorer: Scorer) -> tuple[pa.Table, str]:
    """Return a unit's rows of one teacher, and the digest that the cache knows them by."""
    rows = read_rollout(storage, unit.shard)
    rows = rows.filter(pc.equal(rows.column("teacher"), scorer.name))
    return rows, fingerprint(rows.column("sequence_digest").to_pylist())


def score_table(
    rows: pa.Table, engine: LazyEngine, identity: ScorerIdentity
) -> tuple[pa.Table, int]:
    """Return the score table of rollout rows, and the tokens that the teacher read.

    Raises:
        DataError: the teacher returned a NaN or another impossible number, or the rollout lacks
            the candidates that the signal names.
    """
    if not rows.num_rows:
        return SCORES.empty_table(), 0
    signal = Signal.of(identity.signal)
    digests = rows.column("sequence_digest")
    places = pc.index_in(digests, value_set=pc.unique(digests)).to_numpy()
    _, first = np.unique(places, return_index=True)
    lengths = list_lengths(rows, "response_ids")
    distinct = rows.take(pa.array(first))
    prompts, responses = list_rows(distinct, "prompt_ids"), list_rows(distinct, "response_ids")
    _check_ids(rows, engine.get().vocab_size)
    candidates = candidates_of(distinct, signal)
    scores = engine.call(
        lambda e: e.score(
            prompts,
            responses,
            signal=signal,
            vocab_size=identity.vocab_size,
            candidates=candidates,
        )
    )
    scores.check(vocab_size=identity.vocab_size, where="scoring")
    if len(first) < len(places):
        scores = scores.take(token_index(lengths[first], places))
    tokens = sum(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    return table_of(digests.to_pylist(), scores, lengths, signal), tokens


def _check_ids(rows: pa.Table, vocab_size: int) -> None:
    for name in ("prompt_ids", "response_ids"):
        highest = int(flat_values(rows, name).max(initial=0))
        if highest >= vocab_size:
            raise DataError(
                f"a rollout holds id {highest} in {name!r}, but the teacher's vocabulary ends at "
                f"{vocab_size - 1}: it cannot read the sequence"
            )


def row_squares(gap_T: Floats, own_T: NDArray[np.bool_], lengths: NDArray[np.int64]) -> RowSquares:
    """Return what the error of the mean of log μ − log p over sampled tokens is made of.

    Args:
        gap_T: log μ − log p of each token.
        own_T: whether it was sampled.
        lengths: tokens of each row.
    """
    row_T = np.repeat(np.arange(len(lengths)), lengths)
    kl_R = np.bincount(row_T, np.where(own_T, gap_T, 0.0), len(lengths))
    own_R = np.bincount(row_T, own_T, len(lengths))
    return RowSquares(
        values=float(kl_R @ kl_R), products=float(kl_R @ own_R), weights=float(own_R @ own_R)
    )
