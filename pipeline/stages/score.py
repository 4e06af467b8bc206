"""The score stage: a teacher scores exactly the tokens that the student sampled, once.

Promises: a token sequence that the scorer has seen, in whatever unit, round or run, costs no
teacher work, unless the read of its shard would cost more; the teacher is loaded only when
something is missing; a unit is visible only whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cache.holds import Hold, held
from pipeline.cache.reuse import find_stored
from pipeline.cache.sameweights import find_siblings
from pipeline.cache.scorecache import Origin, Published, ScoreCache
from pipeline.cache.shardreads import ROWS_PER_ROW
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import require_engine
from pipeline.runs.figures import Noise, ScoreFigures
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult, keeps_failure
from pipeline.runs.run import Run, check_run, pin_run
from pipeline.runs.units import Worker, run_units
from pipeline.shards.scores import read_scores
from pipeline.store.records import check_fingerprint, create_record, read_record
from pipeline.teachers.looks import token_looks
from pipeline.teachers.reading import row_squares, score_fingerprint, score_table, unit_rows
from pipeline.teachers.repair import forget_invalid
from pipeline.teachers.selftest import SelfTest, tolerance_of
from pipeline.teachers.teacher import Scorer, find_scorer, pin_scorer
from schemas.columns import flat_values, list_lengths, list_rows
from schemas.errors import ConfigError
from schemas.keys import commit_key, manifest_key, score_stage
from schemas.records.joins import score_manifest, sibling_rows
from schemas.records.runs import RolloutManifest
from schemas.records.scores import CacheCommit, ScoreCommit, ScoreManifest
from schemas.scoresignal import Signal

TEACHER_FLOOR = -100.0
"""Teacher log-probability that stands for −inf in the reported reverse KL."""


@dataclass(frozen=True)
class _Job:
    """What all units of one teacher's part of a round share."""

    run: Run
    rollout: RolloutManifest
    scorer: Scorer
    cache: ScoreCache
    siblings: list[ScoreCache]
    note: Callable[[str], None]
    test: SelfTest
    folder: str
    fingerprint: str


@dataclass(frozen=True)
class _Call:
    """What one call did."""

    commits: Sequence[ScoreCommit] = ()
    start_s: float = 0.0
    noise: Noise | None = None


@keeps_failure("score")
def run_score(
    run: Run,
    round_index: int,
    *,
    teacher: str | None,
    worker: Worker,
    progress: Progress,
    only_invalid: bool = False,
) -> list[StageResult]:
    """Score what a round still lacks, for one teacher or for all; write their manifests.

    Args:
        run: the run.
        round_index: the round.
        teacher: the only one to score with; None for all.
        worker: which units are ours.
        progress: told of each unit.
        only_invalid: verify what is there first, and score anew what is damaged or of a scorer
            that the configuration no longer means.

    Raises:
        ConfigError: the round is not sampled, or there is no such teacher.
        IdentityError: a teacher may not score this student, or is not the one of this run.
        DataError: a rollout shard is damaged, or a teacher returned impossible numbers.
    """
    check_run(run)
    names = [teacher] if teacher is not None else list(run.config.teachers)
    if teacher is not None and teacher not in run.config.teachers:
        known = ", ".join(run.config.teachers)
        raise ConfigError(f"there is no teacher {teacher!r} in the configuration; known: {known}")
    results = []
    for name in names:
        if only_invalid:
            forgotten = forget_invalid(run, round_index, name, progress)
            progress.note(f"{forgotten} units of teacher {name!r} are to be scored anew")
        manifest = run.score(round_index, name)
        if manifest is not None:
            results.append(_result(run, round_index, name, manifest))
            continue
        require_engine(run.config.score.engine, run.config.score.server.urls)
        results.append(_score(run, round_index, name, worker=worker, progress=progress))
    return results


def _score(
    run: Run, round_index: int, teacher: str, *, worker: Worker, progress: Progress
) -> StageResult:
    rollout = run.rollout(round_index)
    if rollout is None:
        raise ConfigError(
            f"round {round_index} has no finished rollout to score: run "
            f"`opd rollout --round {round_index}` first, or `opd run` for everything in order"
        )
    scorer = find_scorer(run, round_index, teacher)
    pin_run(run)
    with held(run.storage, [scorer.key]) as hold:
        pin_scorer(run, scorer)
        job = _job(run, rollout, scorer, note=progress.note)
        manifest, call = _score_units(job, hold, worker=worker, progress=progress)
    return _result(run, round_index, teacher, manifest, call)


def _job(
    run: Run, rollout: RolloutManifest, scorer: Scorer, *, note: Callable[[str], None]
) -> _Job:
    storage, identity = run.storage, scorer.identity
    most_rows = ROWS_PER_ROW * rollout.rows
    return _Job(
        run=run,
        rollout=rollout,
        scorer=scorer,
        cache=ScoreCache(storage, identity, note, most_rows=most_rows),
        siblings=find_siblings(storage, identity, note, most_rows=most_rows),
        note=note,
        test=SelfTest(
            Signal.of(identity.signal),
            vocab_size=identity.vocab_size,
            tolerance=tolerance_of(run.config.score, identity.dtype),
            where=f"teachers.{scorer.name}",
        ),
        folder=run.stage_folder(rollout.round, score_stage(scorer.name)),
        fingerprint=score_fingerprint(scorer, rollout),
    )


def _score_units(
    job: _Job, hold: Hold, *, worker: Worker, progress: Progress
) -> tuple[ScoreManifest | None, _Call]:
    run, scorer = job.run, job.scorer
    names, commits = [unit.unit for unit in job.rollout.units], list[ScoreCommit]()
    with scorer.lazily(run, progress.note) as engine:

        def compute(index: int) -> int:
            commits.append(_score_unit(job, index, engine))
            return commits[-1].shard.tokens

        done = run_units(
            run.storage,
            job.folder,
            names,
            label=f"score {scorer.name}",
            worker=worker,
            compute=compute,
            progress=progress,
        )
    manifest = _finish(job, hold) if done.issuperset(names) else None
    return manifest, _Call(commits, engine.start_s, job.test.noise)


def _score_unit(job: _Job, index: int, engine: LazyEngine) -> ScoreCommit:
    """Cover one rollout shard with a cache shard, from the cache or by the teacher."""
    storage, unit = job.run.storage, job.rollout.units[index]
    rows, input_digest = unit_rows(storage, unit, job.scorer)
    key = commit_key(job.scorer.folder, input_digest)
    cached = job.cache.unit(input_digest)
    if cached is None:
        cached, scores = _compute(job, input_digest, rows, engine)
    else:
        scores = read_scores(storage, cached.shard, scorer=job.scorer.key)
    check_fingerprint(storage, key, cached.fingerprint, job.scorer.key)
    covered = _covered(job, unit.unit, rows, scores, cached=cached)
    return create_record(storage, commit_key(job.folder, unit.unit), covered)


def _compute(job: _Job, input_digest: str, rows: pa.Table, engine: LazyEngine) -> Published:
    """Score with the teacher what is not stored, and commit the unit to the scorer's cache."""
    digests, signal = rows.column("sequence_digest"), Signal.of(job.scorer.identity.signal)
    stored = find_stored(rows, job.cache, siblings=job.siblings, signal=signal, note=job.note)
    is_stored = pc.is_in(digests, value_set=stored.scores.column("sequence_digest"))
    left = rows.filter(pc.invert(is_stored))
    if left.num_rows:
        prompts, responses = list_rows(left, "prompt_ids"), list_rows(left, "response_ids")
        engine.call(lambda e: job.test.once(e, prompts, responses))
    new, teacher_tokens = score_table(left, engine, job.scorer.identity)
    scores = pa.concat_tables([stored.scores, new])
    order = pc.index_in(digests, value_set=scores.column("sequence_digest"))
    origin = Origin(
        _payer(job),
        teacher_tokens=teacher_tokens,
        reused_rows=rows.num_rows - new.num_rows,
        sibling_rows=stored.sibling_rows,
    )
    return job.cache.publish(input_digest, scores.take(order), origin)


def _covered(
    job: _Job, unit: str, rows: pa.Table, scores: pa.Table, *, cached: CacheCommit
) -> ScoreCommit:
    """Return the record that a unit is covered: what it took, how far teacher and student are."""
    paid = cached.paid_by == _payer(job)
    own = flat_values(rows, "response_mask")
    teacher = np.maximum(flat_values(scores, "token_logprob"), TEACHER_FLOOR)
    gap = flat_values(rows, "rollout_student_logprobs") - teacher
    return ScoreCommit(
        unit=unit,
        shard=cached.shard,
        fingerprint=job.fingerprint,
        reused_rows=cached.reused_rows if paid else rows.num_rows,
        teacher_tokens=cached.teacher_tokens if paid else 0,
        sibling_rows=cached.sibling_rows,
        sampled_kl=float(gap[own].astype(np.float64).sum()),
        sampled_tokens=int(own.sum()),
        squares=row_squares(gap, own, list_lengths(rows, "response_ids")),
        looks=token_looks(
            rows, scores, floor=TEACHER_FLOOR, domain=job.run.config.loss.weights.domain
        ),
    )


def _payer(job: _Job) -> str:
    return f"{job.run.name}/{job.rollout.round:04d}"


def _finish(job: _Job, hold: Hold) -> ScoreManifest:
    """Write the manifest of a teacher's part of a round from the commits of all units."""
    commits = []
    for unit in job.rollout.units:
        key = commit_key(job.folder, unit.unit)
        commit = read_record(job.run.storage, key, ScoreCommit)
        check_fingerprint(job.run.storage, key, commit.fingerprint, job.fingerprint)
        commits.append(commit)
    hold.check(job.folder, commits)
    names = {"teacher": job.scorer.name, "scorer": job.scorer.key}
    manifest = score_manifest(commits, rollout=job.rollout, **names)
    return create_record(job.run.storage, manifest_key(job.folder), manifest)


def _result(
    run: Run,
    round_index: int,
    teacher: str,
    manifest: ScoreManifest | None,
    call: _Call = _Call(),
) -> StageResult:
    key, commits = run.manifest_key(round_index, score_stage(teacher)), call.commits
    return StageResult(
        stage="score",
        run=run.name,
        round=round_index,
        units=len(commits),
        rows=manifest.rows if manifest else sum(c.shard.rows for c in commits),
        tokens=manifest.tokens if manifest else sum(c.shard.tokens for c in commits),
        manifest=run.storage.url(key) if manifest else None,
        reused_rows=sum(c.reused_rows for c in commits),
        teacher_tokens=sum(c.teacher_tokens for c in commits),
        engine_start_s=call.start_s,
        figures=ScoreFigures(
            teacher=teacher,
            sibling_rows=sibling_rows(commits),
            noise=call.noise,
            reverse_kl=manifest.reverse_kl if manifest and run.config.rollout.is_whole else None,
        ),
    )
