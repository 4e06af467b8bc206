"""The grade stage: a reward for each sampled response of a round, or why it has none.

Promises: nothing is sampled and no teacher reads; a fault of the grader costs its own row, never
the round; what is graded is pinned to the rollout and to the grader with its code.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.checkpoints.opening import opened_model
from pipeline.checkpoints.student import policy_of_round
from pipeline.models.tokenizer import stored_tokenizer
from pipeline.objectives.advantages import group_figures
from pipeline.rewards.graders import Response
from pipeline.rewards.location import Grader, find_grader
from pipeline.rewards.pool import Judge, Verdict, open_judge
from pipeline.rewards.regrading import forget_rewards
from pipeline.runs.figures import RewardFigures
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult, keeps_failure
from pipeline.runs.run import Run, check_run, pin_run, rollout_command
from pipeline.runs.units import Worker
from pipeline.shards.rewards import read_rewards, write_rewards
from pipeline.shards.rollouts import read_rollout
from pipeline.stages.commits import StageUnits, commit_units
from pipeline.stages.subjects import check_teacher
from pipeline.store.commit import commit_names, content_shard, publish
from pipeline.store.records import create_record, read_record
from schemas.columns import list_rows
from schemas.config.evaluation import RewardSection
from schemas.errors import ConfigError, IdentityError
from schemas.fingerprint import fingerprint
from schemas.foreign import excerpt
from schemas.keys import GRADE, REWARDS, commits_folder, grade_stage, manifest_key
from schemas.records.rewards import RewardManifest
from schemas.records.runs import RolloutManifest
from schemas.records.shards import Commit, UnitShard
from schemas.rewardtable import REWARDS as TABLE

READ = ("sequence_id", "sequence_digest", "prompt_id")
"""Columns of a rollout that its rewards have too."""

GRADED = (*READ, "response_ids", "finish_reason", "reference", "metadata")
"""Columns of a rollout that rewards are made from."""


@dataclass(frozen=True)
class _Job:
    """What all units of a round's grading share."""

    run: Run
    rollout: RolloutManifest
    section: RewardSection
    grader: Grader
    identity: dict[str, Any]
    progress: Progress
    told: set[str] = field(default_factory=set)
    """Kinds of faults of which one was told."""

    @property
    def folder(self) -> str:
        """Return the stage's folder."""
        return self.run.stage_folder(self.rollout.round, grade_stage(self.rollout.teacher))

    @property
    def command(self) -> str:
        """Return the command that grades."""
        whose = "" if self.rollout.teacher is None else f" --teacher {self.rollout.teacher}"
        return f"opd grade --round {self.rollout.round}{whose}"

    @property
    def fingerprint(self) -> str:
        """Return the digest of the work."""
        return fingerprint({"grader": self.identity, "rollout": self.rollout.fingerprint})


@keeps_failure("grade")
def run_grade(
    run: Run,
    round_index: int,
    *,
    worker: Worker,
    progress: Progress,
    again: bool = False,
    teacher: str | None = None,
) -> StageResult:
    """Grade what a round still lacks; write its reward manifest when nothing does.

    Args:
        run: the run.
        round_index: the round.
        worker: which units are ours.
        progress: told of each unit, and of the first fault of each kind.
        again: first forget rewards of another grader, and units on whose rows it failed.
        teacher: whose samples of the round; None for the student's.

    Raises:
        ConfigError: there is no [reward], the round is not sampled, or the grader cannot be loaded.
        IdentityError: another grader has begun to grade the round.
        DataError: a rollout shard is damaged.
    """
    check_run(run)
    if teacher is not None:
        check_teacher(run, teacher)
    job = _job(run, round_index, teacher, progress=progress)
    if again:
        forgotten = forget_rewards(run, job.rollout, job.fingerprint, progress=progress)
        progress.note(f"{forgotten} units of round {round_index} are to be graded anew")
        if forgotten and run.train(round_index) is not None:
            progress.note(
                f"round {round_index} is trained already, on the rewards that it had: its student "
                "stays as it is, and the train manifest names them"
            )
    manifest = run.rewards(round_index, teacher)
    if manifest is not None:
        _check_same(job, manifest_key(job.folder), manifest.fingerprint)
        return _result(job, manifest, computed=0)
    pin_run(run)
    for name in commit_names(run.storage, job.folder)[:1]:
        key = f"{commits_folder(job.folder)}/{name}"
        _check_same(job, key, read_record(run.storage, key, Commit).fingerprint)
    return _graded(job, worker)


def _job(run: Run, round_index: int, teacher: str | None, *, progress: Progress) -> _Job:
    section = run.config.reward
    if section is None:
        raise ConfigError("the configuration has no [reward] section: add one with a grader")
    rollout = run.rollout(round_index, teacher)
    if rollout is None:
        whose = "rollout" if teacher is None else f"samples of teacher {teacher!r}"
        raise ConfigError(
            f"round {round_index} has no finished {whose} to grade: run "
            f"`{rollout_command(round_index, teacher)}` first, or `opd run` for everything in order"
        )
    grader = find_grader(section, run.place)
    identity = {**section.words(), "code": list(grader.identity)}
    return _Job(run, rollout, section, grader, identity, progress)


def _check_same(job: _Job, key: str, found: str) -> None:
    """Refuse rewards of another grader.

    Raises:
        IdentityError: they are.
    """
    if found != job.fingerprint:
        raise IdentityError(
            f"{job.run.storage.url(key)} has rewards of another grader, another version of it, or "
            f"another rollout: found fingerprint {found}, expected {job.fingerprint}. To grade "
            f"with the grader of now, run `{job.command} --again`: it costs no samples and no "
            "teacher. To keep the rewards, undo the change"
        )


def _graded(job: _Job, worker: Worker) -> StageResult:
    run, rollout = job.run, job.rollout
    units = StageUnits(
        run.storage, job.folder, [u.unit for u in rollout.units], job.fingerprint, GRADE
    )
    # a teacher has the student's tokenizer, and may answer before the student is there
    policy = policy_of_round(run, rollout.round if rollout.teacher is None else 0)
    with (
        opened_model(run, policy, weights=False) as source,
        open_judge(job.grader, job.section) as judge,
    ):
        tokenizer = stored_tokenizer(source)
        shards, computed = commit_units(
            units,
            lambda index: _grade_unit(job, rollout.units[index], tokenizer, judge),
            worker=worker,
            progress=job.progress,
        )
    manifest = None
    if shards is not None:
        key = manifest_key(job.folder)
        manifest = create_record(run.storage, key, _manifest(job, shards))
        _check_same(job, key, manifest.fingerprint)
        if not manifest.rewarded:
            job.progress.note(f"no row of round {rollout.round} has a reward: {_shown(manifest)}")
    return _result(job, manifest, computed=computed)


def _grade_unit(job: _Job, unit: UnitShard, tokenizer: Any, judge: Judge) -> int:
    """Grade and commit a unit; return its tokens."""
    storage = job.run.storage
    rows = read_rollout(storage, unit.shard, columns=GRADED)
    verdicts = _verdicts(job, rows, tokenizer, judge)
    _tell(job, rows, verdicts)
    columns = {
        **{name: rows.column(name) for name in READ},
        **{name: [getattr(v, name) for v in verdicts] for name in ("reward", "fault", "words")},
    }
    table = pa.table({f.name: columns[f.name] for f in TABLE}, schema=TABLE)
    data = write_rewards(table, job.identity, where=f"{job.folder} {unit.unit}")
    shard = content_shard(REWARDS, data, rows=table.num_rows, tokens=unit.shard.tokens)
    publish(storage, job.folder, unit.unit, shard=shard, data=data, fingerprint=job.fingerprint)
    return unit.shard.tokens


def _verdicts(job: _Job, rows: pa.Table, tokenizer: Any, judge: Judge) -> list[Verdict]:
    """Return the verdict on each row; code of the user's own is asked only where it must be."""
    texts = tokenizer.batch_decode(list_rows(rows, "response_ids"), skip_special_tokens=True)
    names = ("prompt_id", "reference", "metadata")
    prompts, references, metadata = (rows.column(name).to_pylist() for name in names)
    responses = [Response(*row) for row in zip(prompts, texts, references, metadata, strict=True)]
    unfinished = np.array([reason != "stop" for reason in rows.column("finish_reason").to_pylist()])
    is_asked = ~unfinished | job.grader.compares | (job.section.unfinished == "grade")
    asked = np.flatnonzero(is_asked).tolist()
    found = dict(zip(asked, judge([responses[i] for i in asked]), strict=True))
    return [
        _of_unfinished(job.section, found.get(i)) if unfinished[i] else found[i]
        for i in range(len(responses))
    ]


def _of_unfinished(section: RewardSection, found: Verdict | None) -> Verdict:
    """Return the verdict on a response that did not end; that it cannot be graded comes first."""
    if found is not None and (found.reward is None or section.unfinished == "grade"):
        return found
    if section.unfinished == "zero":
        return Verdict(0.0)
    return Verdict(fault="unfinished", words="it did not end by itself")


def _tell(job: _Job, rows: pa.Table, verdicts: Sequence[Verdict]) -> None:
    """Tell of the first fault of each kind."""
    for index, verdict in enumerate(verdicts):
        if verdict.fault is not None and verdict.fault not in job.told:
            job.told.add(verdict.fault)
            name = excerpt(rows.column("sequence_id")[index].as_py(), 100)
            words = verdict.told or verdict.words
            job.progress.note(f"{job.grader.choice}: {name} has no reward: {words}")


def _manifest(job: _Job, shards: tuple[UnitShard, ...]) -> RewardManifest:
    rollout = job.rollout
    table = pa.concat_tables([read_rewards(job.run.storage, unit.shard) for unit in shards])
    rewards_R = table.column("reward").to_numpy().astype(np.float64)
    _, group_R = np.unique(table.column("prompt_id").to_pylist(), return_inverse=True)
    figures = group_figures(rewards_R, group_R)
    known = rewards_R[~np.isnan(rewards_R)]
    return RewardManifest(
        run=rollout.run,
        round=rollout.round,
        identity=job.identity,
        grader=fingerprint(job.identity),
        rollout_fingerprint=rollout.fingerprint,
        fingerprint=job.fingerprint,
        units=shards,
        rows=table.num_rows,
        tokens=rollout.tokens,
        rewarded=len(known),
        mean=float(known.mean()) if len(known) else None,
        faults=dict(sorted(Counter(table.column("fault").drop_null().to_pylist()).items())),
        groups=figures.groups,
        groups_without_spread=figures.without_spread,
        teacher=rollout.teacher,
    )


def _shown(manifest: RewardManifest) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in manifest.faults.items())


def _result(job: _Job, manifest: RewardManifest | None, *, computed: int) -> StageResult:
    figures = None
    if manifest is not None:
        figures = RewardFigures(
            reward=manifest.mean,
            rewarded=manifest.rewarded,
            faults=manifest.faults,
            groups=manifest.groups,
            groups_without_spread=manifest.groups_without_spread,
            teacher=manifest.teacher,
        )
    return StageResult(
        stage=GRADE,
        run=job.run.name,
        round=job.rollout.round,
        units=computed,
        rows=manifest.rows if manifest else 0,
        tokens=manifest.tokens if manifest else 0,
        manifest=job.run.storage.url(manifest_key(job.folder)) if manifest else None,
        figures=figures,
    )
