"""A run's stored records as what trackers are told: parts of points and samples.

Promises: a part is made of records that a manifest names, so it is the same whenever it is made;
what a tracker has already is not read again.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.checkpoints.opening import opened_model
from pipeline.runs.gate import reverse_kl_of
from pipeline.runs.grades.intervals import accuracy_interval
from pipeline.runs.run import Run
from pipeline.runs.tasks import wants_eval
from pipeline.shards.parquet import read_table
from pipeline.shards.rollouts import read_rollout
from pipeline.store.records import find_record
from pipeline.trackers.tracker import Cell, Part, Point, Subject
from schemas.errors import DataError, OpdError
from schemas.foreign import excerpt, printable, without_secrets
from schemas.keys import STUDENT, run_key, teacher_label
from schemas.records.runs import EvalManifest, RolloutManifest, RunRecord
from schemas.records.training import TrainManifest

LONGEST = 4000
"""Characters of a prompt or a response that are sent."""

SAMPLE_COLUMNS = ("prompt_id", "prompt_ids", "response_ids", "finish_reason", "reference")


def subject_of(run: Run) -> Subject | None:
    """Return what a tracker calls the run, or None before it has begun."""
    record = find_record(run.storage, run_key(run.name), RunRecord)
    if record is None:
        return None
    digest = hashlib.sha256(f"{run.name}\n{record.fingerprint}".encode()).hexdigest()
    shown = run.config.model_dump(mode="json", exclude={"track"})
    settings = dict(_flat(shown, "")) | {"opd.fingerprint": record.fingerprint}
    settings |= {f"opd.software.{name}": words for name, words in record.software.items()}
    first = run.checkpoint(0)
    if first is not None:
        settings["opd.student"] = first.policy_version
    for label in (STUDENT, *map(teacher_label, run.config.teachers)):
        if graded := run.baseline(label):
            settings[f"opd.baseline.{label}.accuracy"] = f"{graded.accuracy:.6g}"
    clean = {name: without_secrets(value) for name, value in settings.items()}
    return Subject(run.name, f"{run.name}-{digest[:12]}", clean)


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value)


def missing_parts(run: Run, known: frozenset[str]) -> Iterator[Part]:
    """Yield the finished parts of a run that a tracker does not have, in order.

    Raises:
        DataError: a stored record is damaged.
    """
    texts = _Texts(run)
    for index in range(run.config.run.rounds):
        name, graded_name = f"{index:04d}", f"{index:04d}-eval"
        asks = wants_eval(run, index, run.config.run.rounds) and graded_name not in known
        if name in known and not asks:
            continue
        train = run.train(index)
        if train is None:
            return
        if name not in known:
            yield _trained(run, name, train, texts)
        graded = run.evaluation(index) if asks else None
        if graded is not None:
            yield _graded(run, graded_name, train, graded)


def _trained(run: Run, name: str, train: TrainManifest, texts: "_Texts") -> Part:
    rollout = _rollout(run, train.round)
    figures = {f"train/{key}": value for key, value in train.summary.items()}
    figures |= {"steps": train.steps, "tokens/trained": train.tokens, "rows/trained": train.rows}
    figures |= {"rows/stale": train.stale_rows, "steps_skipped": train.skipped_steps}
    scores = [run.score(train.round, teacher) for teacher in run.config.teachers]
    done = [one for one in scores if one is not None]
    figures["tokens/teacher"] = sum(one.teacher_tokens for one in done)
    figures["rows/reused"] = sum(one.reused_rows for one in done)
    if rollout is not None:
        figures |= {"rows/sampled": rollout.rows, "tokens/sampled": rollout.tokens}
    gap, rewards = reverse_kl_of(run, train.round), run.rewards(train.round)
    further = {
        "reverse_kl": None if gap is None else gap.value,
        "reverse_kl_error": None if gap is None else gap.error,
        "reward": None if rewards is None else rewards.mean,
        "rollout_kl": train.rollout_kl,
    }
    last = _end(train)
    steps = _steps(run, train)
    whole = Point("round", train.round, last, _finite({**figures, **further}))
    samples = () if rollout is None else tuple(texts.samples(rollout))
    return Part(name, (*steps, whole), samples)


def _graded(run: Run, name: str, train: TrainManifest, graded: EvalManifest) -> Part:
    found = accuracy_interval(graded, samples=graded.samples)
    figures: dict[str, float | None] = {
        "accuracy": found.mean,
        "accuracy_low": found.low,
        "accuracy_high": found.high,
        "eval_stopped": graded.stopped,
        "tokens/eval": graded.tokens,
    }
    figures |= {f"pass_at/{k}": share for k, share in graded.pass_at.items()}
    return Part(name, (Point("round", train.round, _end(train) + 1, _finite(figures)),))


def _end(train: TrainManifest) -> int:
    """Return the place after a round's steps: two follow, of the round and of its evaluation."""
    return train.first_step + train.steps + 2 * train.round


def _steps(run: Run, train: TrainManifest) -> tuple[Point, ...]:
    """Return a round's optimizer steps as they are stored; none where they were deleted."""
    if not run.storage.exists(train.metrics.key):
        return ()
    where = run.storage.url(train.metrics.key)
    table, _ = read_table(run.storage.read_shard(train.metrics), where=where, rows=train.steps)
    if "step" not in table.column_names:
        raise DataError(f"{where} holds no figures of steps: no column 'step'. Restore the object")
    numbers = table.column("step").to_pylist()
    return tuple(
        Point("step", number, number + 2 * train.round, _finite(figures))
        for number, figures in zip(numbers, table.drop_columns(["step"]).to_pylist(), strict=True)
    )


def _finite(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {n: float(v) for n, v in figures.items() if v is not None and math.isfinite(v)}


def _rollout(run: Run, index: int) -> RolloutManifest | None:
    return run.rollout(index, run.config.default_teacher if run.config.is_supervised else None)


class _Texts:
    """Samples as text; the tokenizer is loaded at the first one."""

    def __init__(self, run: Run) -> None:
        self._run, self._loaded = run, False
        self._tokenizer: Any = None
        self._most = run.config.track.samples if run.config.track else 0

    def samples(self, rollout: RolloutManifest) -> Iterator[dict[str, Cell]]:
        """Yield the first rows of a rollout; none where its shard was deleted."""
        if not self._most or not rollout.units:
            return
        shard = rollout.units[0].shard
        if not self._run.storage.exists(shard.key):
            return
        rows = read_rollout(self._run.storage, shard, columns=SAMPLE_COLUMNS)
        for row in rows.slice(0, self._most).to_pylist():
            yield {
                "round": rollout.round,
                "prompt_id": excerpt(row["prompt_id"], 200),
                "prompt": self._text(row["prompt_ids"]),
                "response": self._text(row["response_ids"]),
                "reference": excerpt(row["reference"] or "", 500),
                "tokens": len(row["response_ids"]),
                "finish_reason": row["finish_reason"],
            }

    def _text(self, ids: list[int]) -> str:
        """Return ids as text that no terminal and no page obeys; as numbers without a tokenizer."""
        tokenizer = self._load()
        if tokenizer is None:
            return " ".join(map(str, ids))[:LONGEST]
        known = [one for one in ids if one < len(tokenizer)]
        return printable(tokenizer.decode(known)[:LONGEST], lines=True)

    def _load(self) -> Any:
        first = None if self._loaded else self._run.checkpoint(0)
        self._loaded = True
        if first is not None:
            try:
                from pipeline.models.tokenizer import stored_tokenizer

                with opened_model(self._run, first, weights=False) as source:
                    self._tokenizer = stored_tokenizer(source)
            except (OpdError, ImportError):
                self._tokenizer = None
        return self._tokenizer
