"""What is looked at in a unit's tokens as they are scored: sums that alarms are judged from. Pure.

Promises: of nothing that a codec rounds, so that scores from the teacher and from a shard look the
same.
Shapes: R rows, T tokens of all rows joined, L of them that are looked at, K top-k, N own ids.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.scores.columns import scores_of
from pipeline.scores.scores import Scores
from schemas.columns import Floats, flat_values, list_lengths
from schemas.foreign import printable
from schemas.ragged import offsets_within
from schemas.records.scores import TokenLooks
from schemas.strictjson import StrictJSONError, parse_json

FIRST = 4
"""Tokens of a response that count as its first ones: more than templates begin answers with."""

MOST_LOOKED = 4096
"""Tokens of a unit at which kept ids are looked at, evenly spread."""

DOMAIN_COLUMNS = ("domain", "topic", "task", "source", "category", "subject", "dataset")
"""Free columns that name a prompt's domain, where `loss.weights.domain` names none."""

MOST_DOMAINS, LONGEST_NAME = 64, 60
"""Domains of a unit that are told apart, and characters of their names."""

MOST_OPENINGS = 8
"""Ids of a unit with which the teacher would rather begin that are told apart."""

MOST_OWN_IDS = 16
"""Own ids of the student that are looked for at a token."""

OWN_IDS = "student_topk_ids"


def token_looks(
    rows: pa.Table, scores: pa.Table, *, floor: float, domain: str | None = None
) -> TokenLooks:
    """Return the sums over a unit's rows.

    Args:
        rows: of the rollout.
        scores: of the same rows, in their order.
        floor: teacher log-probability that stands for all below it.
        domain: free column of the prompts that names their domain; None takes the first of
            `DOMAIN_COLUMNS` that they have.
    """
    lengths = list_lengths(rows, "response_ids")
    row_T = np.repeat(np.arange(len(lengths)), lengths)
    own_T = flat_values(rows, "response_mask").astype(bool)
    student_T = flat_values(rows, "rollout_student_logprobs").astype(np.float64)
    teacher_T = np.maximum(flat_values(scores, "token_logprob"), floor).astype(np.float64)
    square_T = np.where(own_T, np.square(student_T - teacher_T), 0.0)
    first_T = own_T & (offsets_within(lengths) < FIRST)
    last_R = np.cumsum(lengths) - 1
    stopped_R = pc.equal(rows["finish_reason"], "stop").to_numpy(zero_copy_only=False)
    ends = last_R[stopped_R & own_T[last_R]] if len(last_R) else last_R
    return TokenLooks(
        rows=rows.num_rows,
        tokens=int(own_T.sum()),
        student=float(student_T[own_T].sum()),
        teacher=float(teacher_T[own_T].sum()),
        gap_squares=float(square_T.sum()),
        first_tokens=int(first_T.sum()),
        first_student=float(student_T[first_T].sum()),
        first_teacher=float(teacher_T[first_T].sum()),
        ended=len(ends),
        ended_student=float(student_T[ends].sum()),
        ended_teacher=float(teacher_T[ends].sum()),
        **_of_kept_ids(rows, kept := scores_of(scores), np.flatnonzero(own_T)),
        **_of_openings(kept, student_T - teacher_T, (last_R + 1 - lengths)[lengths > 0], own_T),
        domains=_by_domain(rows, np.bincount(row_T, square_T, len(lengths)), domain),
        **_of_prompts(list_lengths(rows, "prompt_ids")),
        **_of_rows(rows, np.bincount(row_T, own_T, len(lengths))),
    )


def _of_openings(
    scores: Scores, gap_T: NDArray[Any], first_R: NDArray[Any], own_T: NDArray[Any]
) -> dict[str, Any]:
    """Return what the teacher thinks of how responses begin, and how it would begin itself.

    Args:
        scores: of the tokens.
        gap_T: log q − log p of each.
        first_R: where each response begins.
        own_T: which tokens the student sampled.
    """
    opened = first_R[own_T[first_R]]
    if not len(opened) or not scores.topk_ids.shape[1]:
        return {}
    ids, counts = np.unique(scores.topk_ids[opened, 0], return_counts=True)
    commonest = np.argsort(-counts, kind="stable")[:MOST_OPENINGS]
    return {
        "opened": len(opened),
        "opened_gap": float(gap_T[opened].sum()),
        "opened_squares": float(np.square(gap_T[opened]).sum()),
        "openings": {str(ids[n]): int(counts[n]) for n in np.sort(commonest)},
    }


def _of_rows(rows: pa.Table, tokens_R: NDArray[Any]) -> dict[str, Any]:
    """Return what errors of means need of the rows: lengths by prompt, and weights."""
    prompt_R = rows["prompt_id"].combine_chunks().dictionary_encode()
    tokens_P = np.bincount(prompt_R.indices.to_numpy(), tokens_R, len(prompt_R.dictionary))
    weight_R = rows["weight"].to_numpy().astype(np.float64)
    return {
        "prompts": len(tokens_P),
        "prompt_squares": float(tokens_P @ tokens_P),
        "weights": float(weight_R @ tokens_R),
        "weight_squares": float(np.square(weight_R) @ tokens_R),
    }


def _by_domain(rows: pa.Table, square_R: NDArray[Any], domain: str | None) -> dict[str, float]:
    """Return the weighted sum of the squares of each domain's rows."""
    encoded = rows["metadata"].combine_chunks().dictionary_encode()
    known = [_object(text) for text in encoded.dictionary.to_pylist()]
    names = (domain,) if domain is not None else DOMAIN_COLUMNS
    column = next((n for n in names if any(isinstance(k.get(n), str) for k in known)), None)
    if column is None:
        return {}
    place_R = encoded.indices.fill_null(len(known)).to_numpy()
    pull_R = rows["weight"].to_numpy().astype(np.float64) * square_R
    pull_K = np.bincount(place_R, pull_R, len(known) + 1)
    found: dict[str, float] = {}
    for told, pull in zip([*known, {}], pull_K.tolist(), strict=True):
        value = told.get(column)
        name = printable(value)[:LONGEST_NAME] if isinstance(value, str) else ""
        name = name if name in found or len(found) < MOST_DOMAINS else ""
        found[name] = found.get(name, 0.0) + pull
    return {name: pull for name, pull in sorted(found.items()) if pull}


def _object(text: str) -> dict[str, Any]:
    """Return stored metadata; what is no object of JSON has no columns."""
    try:
        found = parse_json(text.encode())
    except StrictJSONError:
        return {}
    return found if isinstance(found, dict) else {}


def _of_kept_ids(rows: pa.Table, scores: Scores, own: NDArray[Any]) -> dict[str, Any]:
    """Return what the ids kept of the teacher tell, at some of the student's own tokens."""
    none = {"looked": 0, "ranked": 0, "found": 0, "compared": 0, "overlap": 0.0}
    if not len(own) or not scores.topk_ids.shape[1]:
        return none
    places = own[:: -(-len(own) // MOST_LOOKED)]
    kept_LK = scores.topk_ids[places]
    sampled_L = flat_values(rows, "response_ids")[places]
    is_ranked_L = scores.token_rank[places] <= (kept_LK >= 0).sum(axis=1)
    is_found_L = (kept_LK == sampled_L[:, None]).any(axis=1)
    overlaps = _overlap(rows, kept_LK, places)
    return {
        "looked": len(places),
        "ranked": int(is_ranked_L.sum()),
        "found": int((is_ranked_L & is_found_L).sum()),
        "compared": len(overlaps),
        "overlap": float(overlaps.sum()),
    }


def _overlap(rows: pa.Table, kept_LK: NDArray[Any], places: NDArray[Any]) -> Floats:
    """Return the share of the student's own top ids among the kept ones; none where none are."""
    if OWN_IDS not in rows.column_names or rows.column(OWN_IDS).null_count:
        return np.empty(0, np.float32)
    tokens = int(list_lengths(rows, "response_ids").sum())
    own_TN = flat_values(rows, OWN_IDS).reshape(tokens, -1)
    own_LN = own_TN[places, : min(MOST_OWN_IDS, kept_LK.shape[1])]
    if not own_LN.shape[1]:
        return np.empty(0, np.float32)
    found_LN = np.stack([(kept_LK == ids[:, None]).any(axis=1) for ids in own_LN.T], axis=1)
    return np.asarray(found_LN.mean(axis=1), dtype=np.float32)


def _of_prompts(lengths_R: NDArray[np.int64]) -> dict[str, Any]:
    longest = int(lengths_R.max(initial=0))
    return {
        "shortest_prompt": int(lengths_R.min()) if len(lengths_R) else 0,
        "longest_prompt": longest,
        "longest_prompts": int((lengths_R == longest).sum()),
    }
