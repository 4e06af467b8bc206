"""Figures of single tokens, recomputed here token by token in plain Python."""

import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.figures import gather
from pipeline.report.stored.records import read_records
from pipeline.report.tokens.looked import Looked, Tops, looked_at
from pipeline.report.tokens.places import (
    by_family,
    by_position,
    by_round,
    by_token,
    family_column,
    position_edges,
)
from pipeline.report.tokens.reading import MOST_ROUNDS, read_sample
from pipeline.runs.configsource import load_config
from pipeline.runs.run import Run, open_run
from pipeline.shards.rollouts import read_rollout
from pipeline.shards.scores import read_scores
from schemas.columns import flat_values
from schemas.errors import DataError
from tests.support.tinytables import K, rollout_table, score_rows


def with_own_ids(rows: pa.Table, ids: list[list[int]]) -> pa.Table:
    place = rows.column_names.index("student_topk_ids")
    logprobs = [[-1.0] * len(one) for one in ids]
    kinds = [rows.schema.field(place + n).type for n in range(2)]
    rows = rows.set_column(place, "student_topk_ids", pa.array(ids, kinds[0]))
    return rows.set_column(place + 1, "student_topk_logprobs", pa.array(logprobs, kinds[1]))


def with_columns(table: pa.Table, columns: dict[str, list[Any]]) -> pa.Table:
    """Return a table with other values in some of its columns."""
    for name, values in columns.items():
        field = table.schema.field(name)
        place = table.column_names.index(name)
        table = table.set_column(place, field, pa.array(values, field.type))
    return table


def tokens_of(rows: pa.Table, scores: pa.Table) -> list[dict[str, Any]]:
    """Return each token that the student sampled itself, with what is stored of it."""
    found = []
    for row, score in zip(rows.to_pylist(), scores.to_pylist(), strict=True):
        for n, token in enumerate(row["response_ids"]):
            if not row["response_mask"][n]:
                continue
            width = len(score["topk_ids"] or []) // len(row["response_ids"])
            top = (score["topk_ids"] or [])[n * width : (n + 1) * width]
            chances = (score["topk_logprobs"] or [])[n * width : (n + 1) * width]
            own = row["student_topk_ids"] or []
            many = len(own) // len(row["response_ids"])
            mine = own[n * many : (n + 1) * many]
            found.append(
                {
                    "round": row["round"],
                    "position": n,
                    "id": token,
                    "kl": row["rollout_student_logprobs"][n] - max(score["token_logprob"][n], -100),
                    "rank": score["token_rank"][n],
                    "k": width,
                    "mass": sum(np.exp(chances)),
                    "entropy": score["entropy"][n],
                    "overlap": fmean(i in top for i in mine) if mine else None,
                    "family": row["metadata"],
                }
            )
    return found


def test_the_figures_of_a_round_are_means_over_its_own_tokens(finished_run: Path) -> None:
    run = open_run(load_config(finished_run / "run.toml"))
    figures = gather(run, "x", rows=1000)
    for index, found in enumerate(figures.rounds.to_dicts()):
        rollout, scored = run.rollout(index), run.score(index, "main")
        assert rollout is not None and scored is not None
        rows = pa.concat_tables([read_rollout(run.storage, u.shard) for u in rollout.units])
        shards = [u.shard for u in scored.units]
        scores = [read_scores(run.storage, shard, scorer=scored.scorer) for shard in shards]
        tokens = tokens_of(rows, pa.concat_tables(scores))
        lengths = sorted(len(ids) for ids in rows["response_ids"].to_pylist())
        expected = {
            "teacher_entropy": fmean(t["entropy"] for t in tokens),
            "topk_mass": fmean(t["mass"] for t in tokens),
            "sampled_in_topk": fmean(t["rank"] <= t["k"] for t in tokens),
            "sampled_first": fmean(t["rank"] == 1 for t in tokens),
            "looked_kl": scored.reverse_kl,  # all rows were read, so it is the stored one
            "cut_off": fmean(r == "length" for r in rows["finish_reason"].to_pylist()),
            "length_median": median(lengths),
            "length_90": lengths[int(0.9 * (len(lengths) - 1))],
            "looked_rows": rows.num_rows,
        }
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_places_sum_up_their_tokens() -> None:
    rows = rollout_table(60, seed=3)
    lengths = [len(ids) for ids in rows["response_ids"].to_pylist()]
    random = np.random.default_rng(1)
    rows = with_own_ids(rows, [random.integers(0, 11, 2 * n).tolist() for n in lengths])
    place = rows.column_names.index("metadata")
    families = [f'{{"kind": "{"abc"[n % 3]}\\ud800", "n": {n}}}' for n in range(60)]
    rows = rows.set_column(place, "metadata", pa.array(families))
    scores = score_rows(rows, seed=4)
    looked, plain = looked_at(rows, scores, where="x"), tokens_of(rows, scores)
    assert by_round(looked)["overlap"].item() == pytest.approx(fmean(t["overlap"] for t in plain))
    assert family_column(looked) == "kind"  # the other one tells each prompt apart
    whole = sum(t["kl"] for t in plain)
    for name, frame in (
        ("position", by_position(looked.tokens)),
        ("id", by_token(looked.tokens)),
        ("kind", by_family(looked, "kind", looked.tokens)),
    ):
        sums: dict[Any, list[float]] = defaultdict(list)
        for token in plain:
            kind = {"kind": f"{token['family'][10]}\\ud800"} if name == "kind" else {}
            sums[{**token, **kind}[name]].append(token["kl"])
        assert len(frame) == min(len(sums), 10)
        for row in frame.to_dicts():
            mine = sums[row["place"]]
            assert (row["tokens"], row["kl"]) == (len(mine), pytest.approx(fmean(mine), abs=1e-5))
            assert row["share"] == pytest.approx(sum(mine) / whole, abs=1e-5)


def test_the_likeliest_ids_are_those_of_a_top_k_and_then_of_the_sample() -> None:
    rows = rollout_table(3)
    lengths = [len(ids) for ids in rows["response_ids"].to_pylist()]
    scores = score_rows(rows, k=2)
    sample: dict[str, list[Any]] = {
        "sample_ids": [[*[7, 8] * (n - 1), 7] for n in lengths],
        "sample_logprobs": [[*[-3.0, -4.0] * (n - 1), -3.0] for n in lengths],
        "sample_count": [[*[2] * (n - 1), 1] for n in lengths],
        "sample_threshold": [[-math.inf] * n for n in lengths],
    }
    own: dict[str, list[Any]] = {
        "student_sample_ids": [[5, 6] * n for n in lengths],
        "student_sample_logprobs": [[-0.1, -math.inf] * n for n in lengths],
    }
    tops = looked_at(with_columns(rows, own), with_columns(scores, sample), where="x").tops
    assert tops.teacher_ids[:, :2].ravel().tolist() == flat_values(scores, "topk_ids").tolist()
    expected = [pair for n in lengths for pair in (*[[7, 8]] * (n - 1), [7, -1])]
    assert tops.teacher_ids[:, 2:].tolist() == expected
    assert tops.student_ids.tolist() == [[5, -1]] * sum(lengths)
    assert tops.drawn == {"teacher", "student"}
    by_need: dict[str, list[Any]] = {
        "student_sample_ids": [[5] * n for n in lengths],
        "student_sample_logprobs": [[-0.1] * n for n in lengths],
        "student_sample_count": [[1] * n for n in lengths],
    }
    by_need["student_sample_count"][0][0] = 2
    by_need["student_sample_ids"][0].insert(1, 6)
    by_need["student_sample_logprobs"][0].insert(1, -0.2)
    uneven = looked_at(with_columns(rows, by_need), scores, where="x").tops
    assert uneven.student_ids.tolist() == [[5, 6], *[[5, -1]] * (sum(lengths) - 1)]
    whole = looked_at(with_own_ids(rows, [[1, 2] * n for n in lengths]), scores, where="x").tops
    assert (whole.student_ids.shape[1], len(whole.drawn)) == (2, 0)
    assert Tops.joined([whole, tops]).drawn == tops.drawn


@given(st.integers(0, 200_000))
def test_stretches_of_positions_begin_at_0_and_grow(last: int) -> None:
    edges = position_edges(last).tolist()
    assert edges[0] == 0 and edges[-1] <= last and len(edges) <= 70
    assert edges[:16] == list(range(min(16, last + 1)))
    assert edges == sorted(set(edges))


def test_scores_of_other_sequences_are_refused() -> None:
    rows = rollout_table(5)
    with pytest.raises(DataError, match="other sequences"):
        looked_at(rows, score_rows(rollout_table(5, seed=9)), where="the shard")


def test_what_is_not_stored_is_null_and_not_nothing() -> None:
    rows = rollout_table(5)
    found = looked_at(rows, None, where="")
    assert all(found.tokens[name].null_count() == len(found.tokens) for name in ("kl", "rank"))
    assert found.tops.teacher_ids.shape == (len(found.tokens), 0)
    assert by_round(found)["teacher_entropy"].to_list() == [None]
    assert Looked.joined([]).rows.is_empty() and by_round(Looked.joined([])).is_empty()
    scored = looked_at(rows, score_rows(rows), where="")
    assert scored.tops.teacher_ids.shape[1] == K
    assert scored.tokens["overlap"].null_count() == len(scored.tokens)


def test_what_is_read_is_bounded_and_what_cannot_be_is_told(run_copy: Path) -> None:
    run: Run = open_run(load_config(run_copy / "run.toml"))
    records = read_records(run)
    few = read_sample(records, 3)
    assert few.trained.rows.group_by("round").len()["len"].to_list() == [3, 3]
    assert few.notes == ()
    assert MOST_ROUNDS < 30
    rollout = run.rollout(1)
    assert rollout is not None
    for unit in rollout.units:
        (run_copy / "store" / unit.shard.key).unlink()
    less = read_sample(records, 100)
    assert less.trained.rows["round"].unique().to_list() == [0]
    assert len(less.notes) == len(rollout.units)
    assert rollout.units[0].shard.key in "".join(less.notes)
    assert isinstance(less.trained.tokens, pl.DataFrame)
