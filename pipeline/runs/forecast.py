"""What is left of a run before it is spent: rows, tokens, bytes, objects and hours.

Rates are those of the last round that is scored, so that the cost of asking does not grow with the
run; before there is one, they are the limits of the configuration.
"""

import math
from dataclasses import dataclass, field

from pipeline.runs.reporting import stage_seconds
from pipeline.runs.run import Run
from schemas.config.run import usual_signal_of
from schemas.records.runs import RolloutManifest
from schemas.records.scores import ScoreManifest
from schemas.scoresignal import Kind, Signal

BYTES_PER_VALUE, BYTES_PER_LOGPROB = 4, 2
"""Of a score shard before compression: a log-probability that may be rounded has 16 bits."""

OBJECTS_PER_UNIT = 2
"""A shard and its commit."""


@dataclass(frozen=True)
class Forecast:
    """The size of some rounds."""

    rounds: int
    units: int
    """Units of rollout; each teacher's part of a round has as many."""
    rows: int
    response_tokens: int
    teacher_tokens: int
    """Prompt and response tokens that teachers read, where nothing is in the cache already."""
    cache_bytes: int
    objects: int
    """Objects of rollout, grade and score."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Summed over workers, by stage; empty before a round was timed."""
    basis: str = ""
    """What the rates are: `limits`, which nothing exceeds, or the round they were measured in."""


def forecast(run: Run, *, first: int, rounds: int, rates: "Rates | None" = None) -> Forecast:
    """Return what the rounds from `first` up to and without `rounds` are made of.

    Args:
        run: the run.
        first: first round that is not finished.
        rounds: rounds to reach.
        rates: of another round; default those of the run's own, or its limits.
    """
    section, count = run.config.rollout, max(0, rounds - first)
    rows = section.prompts_per_round * section.samples_per_prompt
    units = math.ceil(section.prompts_per_round / section.prompts_per_unit)
    rates = rates or _measured(run, first) or _limits(run)
    tokens = rows * rates.tokens_per_row
    # the round's own commits and those of the cache; rewards
    parts = 1 + 2 * len(run.config.teachers) + (run.config.reward is not None)
    return Forecast(
        rounds=count,
        units=count * units,
        rows=count * rows,
        response_tokens=round(count * tokens),
        teacher_tokens=round(count * rows * rates.teacher_tokens_per_row),
        cache_bytes=round(count * tokens * rates.bytes_per_token),
        objects=count * units * OBJECTS_PER_UNIT * parts,
        seconds={stage: count * seconds for stage, seconds in rates.seconds.items()},
        basis=rates.basis,
    )


@dataclass(frozen=True)
class Rates:
    """What a row and a round come to."""

    tokens_per_row: float
    teacher_tokens_per_row: float
    bytes_per_token: float
    seconds: dict[str, float]
    basis: str


def _limits(run: Run) -> Rates:
    section = run.config.rollout
    return Rates(
        tokens_per_row=section.max_new_tokens,
        teacher_tokens_per_row=run.config.prompts.max_tokens + section.max_new_tokens,
        bytes_per_token=_most_bytes(usual_signal_of(run.config)),
        seconds={},
        basis="limits",
    )


def _most_bytes(signal: Signal) -> int:
    """Return the bytes of a response token in `typed-v1`, the larger codec."""
    return sum(
        column.per_token(signal)
        * (BYTES_PER_LOGPROB if column.kind is Kind.LOGPROBS else BYTES_PER_VALUE)
        for column in signal.columns
    )


def _measured(run: Run, first: int) -> Rates | None:
    """Return the rates of the round at hand, where it is scored, or of the one before."""
    for index in (first, first - 1):
        rollout = run.rollout(index) if index >= 0 else None
        if rollout is None:
            continue
        scores = [run.score(index, name) for name in run.config.teachers]
        done = [score for score in scores if score is not None]
        if len(done) == len(scores) and rollout.tokens:
            return rates_of(run, index, rollout, done)
    return None


def rates_of(run: Run, index: int, rollout: RolloutManifest, scores: list[ScoreManifest]) -> Rates:
    """Return the rates of a round that is scored."""
    shards = [unit.shard for score in scores for unit in score.units]
    tokens, paid = sum(s.tokens for s in shards), sum(s.rows - s.reused_rows for s in scores)
    read = sum(s.teacher_tokens for s in scores)
    limit = _limits(run).teacher_tokens_per_row
    return Rates(
        tokens_per_row=rollout.tokens / rollout.rows,
        teacher_tokens_per_row=read / paid if paid else limit,
        bytes_per_token=sum(s.bytes for s in shards) / tokens if tokens else 0.0,
        seconds=stage_seconds(run, index),
        basis=f"round {index}",
    )
