"""Transcripts as compact data of the page: text in pieces, and the numbers of each token.

Promises: no more bytes than allowed; what did not fit is counted. Log-probabilities are whole
thousandths of a nat.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from pipeline.report.tokens.looked import Looked
from pipeline.report.tokens.reading import Sample
from pipeline.report.transcripts.choice import chosen
from pipeline.report.transcripts.pieces import Pieces

MOST_BYTES = 5_000_000
"""Bytes of all transcripts of a page."""

MOST_PROMPT = 3000
"""Characters of a prompt that are shown, its end."""

LEAST = -100_000
"""Thousandths of a nat that stand for all below them, minus infinity too."""


@dataclass
class Pack:
    """What the page's script reads."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    tops: dict[int, str] = field(default_factory=dict)
    """Text of each id that is among the likeliest somewhere."""
    left_out: int = 0
    """Transcripts that did not fit."""
    bytes: int = 0


def pack(sample: Sample, pieces: Pieces, *, most_rows: int, most_bytes: int = MOST_BYTES) -> Pack:
    """Return the transcripts of a run.

    Args:
        sample: what was read of it.
        pieces: its ids as text.
        most_rows: transcripts, at most.
        most_bytes: bytes that they may take, about.
    """
    trained, held_out = chosen(sample, most_rows)
    found = Pack()
    parts = ((sample.held_out, held_out, "held out"), (sample.trained, trained, "trained on"))
    for looked, rows, kind in parts:
        starts = np.concatenate([[0], np.cumsum(looked.rows["length"].to_numpy())])
        for row in rows:
            if found.bytes > most_bytes:
                found.left_out += 1
                continue
            span = slice(int(starts[row]), int(starts[row + 1]))
            one = {"kind": kind, **_row(looked, row, span, pieces)}
            _add(found, one, looked, span, pieces)
    return found


def _row(looked: Looked, row: int, span: slice, pieces: Pieces) -> dict[str, Any]:
    facts = looked.rows.row(row, named=True)
    tokens = looked.tokens[span]
    split = pieces.split(facts["response_ids"])
    prompt = "".join(piece.text for piece in pieces.split(facts["prompt_ids"]))
    own = tokens.filter(pl.col("own") & pl.col("kl").is_not_null())["kl"]
    return {
        "round": facts["round"],
        "prompt": prompt if len(prompt) <= MOST_PROMPT else f"…{prompt[-MOST_PROMPT:]}",
        "key": facts["prompt_id"],
        "sample": facts["sample_index"],
        "teacher": facts["teacher"],
        "finish": facts["finish_reason"],
        "reward": facts["reward"],
        "reference": facts["reference"],
        "kl": own.mean(),
        "worst": own.max(),
        "text": [piece.text for piece in split],
        "joined": [n for n, piece in enumerate(split) for _ in range(piece.tokens)]
        if any(piece.tokens > 1 for piece in split)
        else None,
        "ids": facts["response_ids"],
        "student": _thousandths(tokens["student"]),
        "scored": None if tokens["teacher"].has_nulls() else _thousandths(tokens["teacher"]),
        "rank": None if tokens["rank"].has_nulls() else tokens["rank"].to_list(),
    }


def _add(found: Pack, one: dict[str, Any], looked: Looked, span: slice, pieces: Pieces) -> None:
    """Add a transcript with the likeliest ids of its tokens, and the texts of these."""
    tops = looked.tops
    for whose, ids, logprobs in (
        ("teacher", tops.teacher_ids[span], tops.teacher_logprobs[span]),
        ("student", tops.student_ids[span], tops.student_logprobs[span]),
    ):
        one[f"{whose}_ids"] = ids.reshape(-1).tolist()
        one[f"{whose}_tops"] = _thousandths(logprobs.reshape(-1))
        one[f"{whose}_width"] = ids.shape[1]
        one[f"{whose}_drawn"] = whose in tops.drawn
        for token in np.unique(ids[ids >= 0]).tolist():
            if token not in found.tops:
                found.tops[token] = pieces.one(token)
                found.bytes += len(found.tops[token]) + 12
    found.bytes += len(json.dumps(one, separators=(",", ":")))
    found.rows.append(one)


def _thousandths(values: Sequence[float] | pl.Series | np.ndarray[Any, Any]) -> list[int]:
    finite = np.nan_to_num(np.asarray(values, np.float64), nan=0.0, neginf=LEAST / 1000)
    found: list[int] = np.maximum(np.round(finite * 1000), LEAST).astype(np.int64).tolist()
    return found
