"""Tokens of some sequences with their scores, as frames. Pure.

Shapes: T tokens of all rows joined, K top-k, N ids of the student's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.scores.candidates import own_counts
from pipeline.scores.columns import scores_of
from pipeline.scores.scores import Scores
from schemas.columns import flat_values, list_lengths
from schemas.errors import DataError
from schemas.ragged import offsets_within, padded

FLOOR = -100.0
"""Teacher log-probability that stands for all below it, as in the stored reverse KL."""

SHOWN_TOPS = 5
"""Top ids of a position that are kept for transcripts."""

OVERLAP_IDS = 16
"""Own ids of the student that are looked for in the teacher's top-k, at most."""

BLOCK = 4096
"""Tokens whose ids are compared at once."""

Pair = tuple[NDArray[Any], NDArray[Any]]
"""Ids and their log-probabilities, [T, N]."""

ROWS: dict[str, Any] = {
    "row": pl.Int64,
    "round": pl.Int64,
    "teacher": pl.String,
    "prompt_id": pl.String,
    "sample_index": pl.Int64,
    "prompt_ids": pl.List(pl.Int32),
    "response_ids": pl.List(pl.Int32),
    "finish_reason": pl.String,
    "reward": pl.Float64,
    "reference": pl.String,
    "metadata": pl.String,
    "length": pl.Int64,
}
"""A row for each sequence; `row` numbers them through the run."""

TOKENS: dict[str, Any] = {
    "row": pl.Int64,
    "round": pl.Int64,
    "position": pl.Int64,
    "id": pl.Int64,
    "own": pl.Boolean,
    "student": pl.Float64,
    "teacher": pl.Float64,
    "kl": pl.Float64,
    "rank": pl.Int64,
    "in_topk": pl.Boolean,
    "mass": pl.Float64,
    "entropy": pl.Float64,
    "overlap": pl.Float64,
}
"""A row for each token. `student`, `teacher`: log-probability of the token when it was sampled and
as it was scored; `kl`: their difference; null where it is not stored."""


@dataclass(frozen=True)
class Tops:
    """Likeliest ids of each token, best first: int32 and float32 [T, ≤ `SHOWN_TOPS`].

    Where a sample stands in the place of a top-k they are the likeliest of the sample; -1 where
    there are fewer.
    """

    teacher_ids: NDArray[np.int32]
    teacher_logprobs: NDArray[np.float32]
    student_ids: NDArray[np.int32]
    """[T, 0] where the rollout kept none."""
    student_logprobs: NDArray[np.float32]
    drawn: frozenset[str] = frozenset()
    """Whose ids, `teacher` or `student`, are of a sample somewhere: likelier ones may lack."""

    @classmethod
    def joined(cls, parts: Sequence["Tops"]) -> "Tops":
        """Return the tops of several parts, of the narrowest one's width."""
        if not parts:
            ids, logprobs = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
            return cls(ids, logprobs, ids, logprobs)
        found: dict[str, Any] = {"drawn": frozenset().union(*(part.drawn for part in parts))}
        for name in ("teacher_ids", "teacher_logprobs", "student_ids", "student_logprobs"):
            arrays = [getattr(part, name) for part in parts]
            width = min(array.shape[1] for array in arrays)
            found[name] = np.concatenate([array[:, :width] for array in arrays])
        return cls(**found)


@dataclass(frozen=True)
class Looked:
    """Sequences of a run and their tokens, in the order in which they were read."""

    rows: pl.DataFrame
    tokens: pl.DataFrame
    tops: Tops

    @classmethod
    def joined(cls, parts: Sequence["Looked"]) -> "Looked":
        """Return several parts as one, their rows numbered through."""
        rows, tokens, first = [pl.DataFrame(schema=ROWS)], [pl.DataFrame(schema=TOKENS)], 0
        for part in parts:
            rows.append(part.rows.with_columns(pl.col("row") + first))
            tokens.append(part.tokens.with_columns(pl.col("row") + first))
            first += len(part.rows)
        return cls(pl.concat(rows), pl.concat(tokens), Tops.joined([part.tops for part in parts]))


def looked_at(rollout: pa.Table, scores: pa.Table | None, *, where: str) -> Looked:
    """Return rows of a rollout with what is stored of their tokens.

    Args:
        rollout: the rows.
        scores: the teacher's, in the same order; None where they are not scored.
        where: what messages call the scores.

    Raises:
        DataError: the scores are of other sequences.
    """
    if scores is not None and scores["sequence_digest"] != rollout["sequence_digest"]:
        raise DataError(
            f"{where} holds other sequences than its rollout, or in another order: restore it, or "
            "make the scores again with `opd score --only-invalid`"
        )
    lengths = list_lengths(rollout, "response_ids")
    count = int(lengths.sum())
    own = _own_ids(rollout, "student_topk", count)
    found = None if scores is None else scores_of(scores)
    tokens = _tokens(rollout, lengths, found, own[0])
    tops = _tops(found, own, _own_ids(rollout, "student_sample", count))
    return Looked(_rows(rollout, lengths), tokens, tops)


def _rows(rollout: pa.Table, lengths: NDArray[np.int64]) -> pl.DataFrame:
    names = [name for name in ROWS if name in rollout.column_names]
    frame = pl.from_arrow(rollout.select(names))
    assert isinstance(frame, pl.DataFrame)
    numbered = frame.with_columns(
        row=pl.Series(np.arange(len(frame))), length=pl.Series(lengths, dtype=pl.Int64)
    )
    return numbered.select(pl.col(name).cast(kind) for name, kind in ROWS.items())


def _tokens(
    rollout: pa.Table, lengths: NDArray[np.int64], scores: Scores | None, own_ids: NDArray[Any]
) -> pl.DataFrame:
    rounds = rollout.column("round").to_numpy()
    student = flat_values(rollout, "rollout_student_logprobs").astype(np.float64)
    columns: dict[str, Any] = {
        "row": np.repeat(np.arange(len(lengths)), lengths),
        "round": np.repeat(rounds, lengths),
        "position": offsets_within(lengths),
        "id": flat_values(rollout, "response_ids"),
        "own": flat_values(rollout, "response_mask"),
        "student": student,
    }
    if scores is not None:
        teacher = np.maximum(scores.token_logprob.astype(np.float64), FLOOR)
        kept = (scores.topk_ids >= 0).sum(axis=1)
        columns |= {"teacher": teacher, "kl": student - teacher, "rank": scores.token_rank}
        if scores.topk_ids.shape[1]:
            mass = np.exp(scores.topk_logprobs.astype(np.float64)).sum(axis=1)
            columns |= {"in_topk": scores.token_rank <= kept, "mass": mass}
        if scores.entropy is not None:
            columns["entropy"] = scores.entropy
        if own_ids.shape[1] and scores.topk_ids.shape[1]:
            columns["overlap"] = _overlap(own_ids, scores.topk_ids)
    frame = pl.DataFrame(columns)
    absent = [pl.lit(None).alias(name) for name in TOKENS if name not in columns]
    return frame.with_columns(absent).select(pl.col(n).cast(kind) for n, kind in TOKENS.items())


def _overlap(own_TN: NDArray[Any], topk_TK: NDArray[Any]) -> NDArray[np.float64]:
    """Return the share of the student's own ids that are among the teacher's, float64 [T]."""
    own_TN = own_TN[:, : min(OVERLAP_IDS, topk_TK.shape[1])]
    parts = [
        (own_TN[start : start + BLOCK, :, None] == topk_TK[start : start + BLOCK, None, :])
        .any(axis=2)
        .mean(axis=1)
        for start in range(0, len(own_TN), BLOCK)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _own_ids(rollout: pa.Table, kind: str, tokens: int) -> Pair:
    """Return the student's own ids of a kind, with their log-probabilities; N may be 0.

    They are -1 and -inf where a token has fewer.
    """
    found, counts = [], own_counts(rollout) if kind == "student_sample" else None
    for name, form, none in (
        (f"{kind}_ids", np.int32, -1),
        (f"{kind}_logprobs", np.float32, -np.inf),
    ):
        absent = name not in rollout.column_names or rollout.column(name).null_count
        values = np.empty(0, form) if absent else flat_values(rollout, name)
        if counts is None or absent:
            found.append(values.reshape(tokens, -1 if tokens else 0))
        else:
            found.append(padded(values, counts, fill=none))
    return found[0], found[1]


def _tops(scores: Scores | None, own: Pair, own_sample: Pair) -> Tops:
    """Return the likeliest ids: of a top-k first, then of the sample beside it."""
    tokens = len(own[0])
    none = np.empty((tokens, 0), np.int32), np.empty((tokens, 0), np.float32)
    top, sample = none, none
    if scores is not None:
        top = scores.topk_ids, scores.topk_logprobs
        if scores.sample_ids is not None and scores.sample_logprobs is not None:
            sample = scores.sample_ids, scores.sample_logprobs
    teacher = _ranked(top, sample)
    student = own if own[0].shape[1] else _ranked(none, own_sample)
    drawn = {
        name
        for name, one, k in (("teacher", sample, top), ("student", own_sample, own))
        if one[0].shape[1] and k[0].shape[1] < SHOWN_TOPS
    }
    shown = [np.ascontiguousarray(x[:, :SHOWN_TOPS]) for x in (*teacher, *student)]
    return Tops(shown[0], shown[1], shown[2], shown[3], frozenset(drawn))


def _ranked(top: Pair, sample: Pair) -> Pair:
    """Return the ids of a top-k with those of the sample of all others, of which none is likelier.

    An id without mass is none.
    """
    ids, logprobs = (np.concatenate([a, b], axis=1) for a, b in zip(top, sample, strict=True))
    return np.where(np.isneginf(logprobs), np.int32(-1), ids), logprobs
