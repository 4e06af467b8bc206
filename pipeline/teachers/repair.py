"""Forgetting of scores that cannot be used, so that the score stage makes them anew."""

import pyarrow as pa

from pipeline.runs.progress import Progress
from pipeline.runs.run import Run
from pipeline.shards.scores import read_scores
from pipeline.store.records import find_record
from pipeline.store.storage import Storage
from pipeline.teachers.reading import score_fingerprint, unit_rows
from pipeline.teachers.teacher import Scorer, find_scorer
from schemas.errors import DataError, IdentityError
from schemas.keys import commit_key, index_folder, index_part, score_stage
from schemas.records.runs import RolloutManifest
from schemas.records.scores import CacheCommit, ScoreCommit
from schemas.records.shards import Shard, UnitShard


def forget_invalid(run: Run, round_index: int, teacher: str, progress: Progress) -> int:
    """Forget the units of a round whose scores are damaged or of another scorer; return how many.

    Args:
        run: the run.
        round_index: the round.
        teacher: name of the teacher.
        progress: told of each unit that is looked at.
    """
    rollout = run.rollout(round_index)
    if rollout is None:
        return 0
    scorer = find_scorer(run, round_index, teacher)
    folder = run.stage_folder(round_index, score_stage(teacher))
    invalid = []
    progress.start(f"verify {teacher}", len(rollout.units), 0)
    try:
        for unit in rollout.units:
            if not _is_well(run, rollout, scorer, unit, folder):
                invalid.append(unit)
            progress.advance()
    finally:
        progress.stop()
    if invalid:
        run.storage.delete(run.manifest_key(round_index, score_stage(teacher)))
    for unit in invalid:
        _forget(run, scorer, folder, unit)
    return len(invalid)


def _is_well(
    run: Run, rollout: RolloutManifest, scorer: Scorer, unit: UnitShard, folder: str
) -> bool:
    """Return whether a unit has no commit, or one that can be read and whose scores are right."""
    try:
        commit = find_record(run.storage, commit_key(folder, unit.unit), ScoreCommit)
    except DataError:
        return False
    return commit is None or _is_valid(run, rollout, scorer, unit, commit)


def _is_valid(
    run: Run, rollout: RolloutManifest, scorer: Scorer, unit: UnitShard, commit: ScoreCommit
) -> bool:
    if commit.fingerprint != score_fingerprint(scorer, rollout):
        return False
    scores = _scores(run.storage, scorer, commit.shard)
    if scores is None:
        return False
    rows, _ = unit_rows(run.storage, unit, scorer)
    return bool(scores.column("sequence_digest").equals(rows.column("sequence_digest")))


def _scores(storage: Storage, scorer: Scorer, shard: Shard) -> pa.Table | None:
    try:
        return read_scores(storage, shard, scorer=scorer.key)
    except (DataError, IdentityError):
        return None


def _forget(run: Run, scorer: Scorer, folder: str, unit: UnitShard) -> None:
    """Delete a unit's commit, and what the cache holds of it where that is damaged."""
    storage = run.storage
    storage.delete(commit_key(folder, unit.unit))
    _, digest = unit_rows(storage, unit, scorer)
    key = commit_key(scorer.folder, digest)
    try:
        cached = find_record(storage, key, CacheCommit)
    except DataError:  # what it names is not known, and may be another unit's
        storage.delete(f"{index_part(index_folder(scorer.key), 'new')}/{digest}")
        storage.delete(key)
        return
    if cached is not None and _scores(storage, scorer, cached.shard) is None:
        storage.delete(f"{index_part(index_folder(scorer.key), 'new')}/{digest}")
        storage.delete(key)  # not its shard: by now another process may have put it again
