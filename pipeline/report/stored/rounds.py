"""The figures of rounds and steps from a run's records: one frame of each. Pure.

Promises: a figure that is not stored is null; nothing is estimated.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from pipeline.report.stored.records import STAGES, RoundRecords, RunRecords
from pipeline.runs.gate import Gap
from pipeline.runs.grades.intervals import Interval, Z, accuracy_interval
from schemas.config.run import RunConfig
from schemas.records.runs import EvalManifest
from schemas.records.scores import ScoreManifest

Value = float | int | None

OWN = ("reverse_kl", "rollout_kl")
"""Figures of a round that mean something else than the means of its steps."""

MOST_POINTS = 240
"""Steps of a run that are drawn one by one."""


def round_frame(records: RunRecords) -> pl.DataFrame:
    """Return a row of figures for each round."""
    section = records.run.config.eval
    samples = 1 if section is None else section.samples_per_prompt
    empty = of_nothing(records.run.config)
    rows = [_row(one, samples, empty) for one in records.rounds]
    names = dict.fromkeys(name for row in rows for name in row)
    schema = {"round": pl.Int64, **{n: pl.Float64 for n in names if n != "round"}}
    if not rows:
        return pl.DataFrame(schema=schema)
    floats = [{n: v if n == "round" else _float(v) for n, v in row.items()} for row in rows]
    frame = pl.DataFrame(floats, schema=schema)
    spent = pl.col("teacher_tokens").fill_null(0).cum_sum().alias("teacher_tokens_so_far")
    time = pl.col("seconds").fill_null(0.0).cum_sum().alias("seconds_so_far")
    return frame.with_columns(spent, time)


def of_nothing(config: RunConfig) -> frozenset[str]:
    """Return figures of the learner that say nothing of a run: sums over ids that nobody kept.

    Without a top-k nothing has mass, and a divergence is known by the sample that suits it alone.
    """
    if config.score.k:
        return frozenset()
    masses = {"student_mass", "teacher_mass"}
    teacher = set() if config.score.sample else {"forward_kl"}
    student = set() if config.rollout.sample else {"reverse_kl"}
    return frozenset(masses | teacher | student)


def step_frame(records: RunRecords) -> pl.DataFrame:
    """Return a row for each optimizer step, with its round; what is no number is null."""
    absent = ["round", *of_nothing(records.run.config)]
    parts = [
        one.steps.drop(absent, strict=False).with_columns(
            pl.lit(one.round).alias("round"), pl.all().exclude("step").cast(pl.Float64)
        )
        for one in records.rounds
        if len(one.steps)
    ]
    if not parts:
        return pl.DataFrame(schema={"step": pl.Int64, "round": pl.Int64})
    frame = pl.concat(parts, how="diagonal").sort("step")
    names = [n for n in frame.columns if n not in ("step", "round")]
    finite = [pl.when(pl.col(n).is_finite()).then(pl.col(n)).alias(n) for n in names]
    return frame.with_columns(pl.col("round").cast(pl.Int64), *finite)


def thinned(steps: pl.DataFrame, most: int = MOST_POINTS) -> pl.DataFrame:
    """Return steps as they are, or means of neighbours with `_low` and `_high` where many.

    Args:
        steps: as `step_frame` gives them.
        most: points of the result.
    """
    if len(steps) <= most:
        return steps
    names = [name for name in steps.columns if name not in ("step", "round")]
    width = math.ceil(len(steps) / most)
    return (
        steps.with_row_index("place")
        .group_by(pl.col("place") // width, maintain_order=True)
        .agg(
            pl.col("step", "round").first(),
            pl.col(names).mean(),
            pl.col(names).min().name.suffix("_low"),
            pl.col(names).max().name.suffix("_high"),
        )
        .drop("place")
    )


def _float(value: Value) -> float | None:
    return None if value is None else float(value)


def _row(one: RoundRecords, samples: int, empty: frozenset[str]) -> dict[str, Value]:
    row: dict[str, Value] = {}
    if one.train is not None:
        told = {n: v for n, v in one.train.summary.items() if n not in empty}
        row |= {n: v for n, v in told.items() if n not in OWN}
        row |= {
            "trained_reverse_kl": told.get("reverse_kl"),
            "rollout_kl": one.train.rollout_kl,
            "steps": one.train.steps,
            "trained_tokens": one.train.tokens,
            "stale_rows": one.train.stale_rows,
            "untrained_rows": one.train.untrained_rows,
            "skipped_steps": one.train.skipped_steps,
        }
    row |= {"round": one.round, "rows": one.plan.rows}
    rolled = one.rollout
    row["response_tokens"] = None if rolled is None else rolled.tokens / max(rolled.rows, 1)
    row["reward"] = None if one.rewards is None else one.rewards.mean
    graded, scored = _graded(one.evaluation, samples), _scored(one.scores.values())
    return row | graded | _gap(one.gap) | scored | _timed(one)


def _gap(gap: Gap | None) -> dict[str, Value]:
    """Return the reverse KL with its 95 % interval, where its standard error is stored."""
    if gap is None:
        return dict.fromkeys(("reverse_kl", "reverse_kl_low", "reverse_kl_high"))
    half = None if gap.error is None else Z * gap.error
    return {
        "reverse_kl": gap.value,
        "reverse_kl_low": None if half is None else gap.value - half,
        "reverse_kl_high": None if half is None else gap.value + half,
    }


def _graded(graded: EvalManifest | None, samples: int) -> dict[str, Value]:
    none = Interval(math.nan, math.nan, math.nan)
    found = none if graded is None else accuracy_interval(graded, samples=samples)
    mean, low, high = (None if math.isnan(value) else value for value in found)
    return {
        "accuracy": mean,
        "accuracy_low": low,
        "accuracy_high": high,
        "graded_rows": None if graded is None else graded.rows,
        "eval_stopped": None if graded is None else graded.stopped,
    }


def _scored(found: Iterable[ScoreManifest]) -> dict[str, Value]:
    scores = list(found)
    if not scores:
        names = ("teacher_tokens", "paid_rows", "reused_rows", "paid_bytes", "reused_bytes")
        return dict.fromkeys(names)
    sizes = [sum(unit.shard.bytes for unit in one.units) for one in scores]
    reused = [
        size * one.reused_rows / max(one.rows, 1) for size, one in zip(sizes, scores, strict=True)
    ]
    rows, again = sum(one.rows for one in scores), sum(one.reused_rows for one in scores)
    return {
        "teacher_tokens": sum(one.teacher_tokens for one in scores),
        "paid_rows": rows - again,
        "reused_rows": again,
        "paid_bytes": sum(sizes) - sum(reused),
        "reused_bytes": sum(reused),
    }


def _timed(one: RoundRecords) -> dict[str, Value]:
    """Return seconds and rates of each stage, and for how long the learner waited for data."""
    found = one.calls.group_by("stage").agg(pl.col("seconds", "tokens", "engine_start_s").sum())
    by_stage: Mapping[str, Any] = {row["stage"]: row for row in found.to_dicts()}
    row: dict[str, Value] = {"seconds": sum(one["seconds"] for one in by_stage.values()) or None}
    for stage in STAGES:
        seconds = by_stage[stage]["seconds"] if stage in by_stage else None
        tokens = by_stage[stage]["tokens"] if stage in by_stage else None
        row[f"seconds_{stage}"] = seconds
        row[f"rate_{stage}"] = tokens / seconds if tokens and seconds else None
    waits = one.calls.filter(pl.col("data_wait_share").is_not_null() & (pl.col("seconds") > 0))
    waited = float((waits["data_wait_share"] * waits["seconds"]).sum())
    row["data_wait_share"] = waited / float(waits["seconds"].sum()) if len(waits) else None
    return row
