"""Forgetting of a round's rewards that are to be given anew. Must not: touch a shard."""

from pipeline.rewards.process import FAULTS
from pipeline.runs.progress import Progress
from pipeline.runs.run import Run
from pipeline.shards.rewards import read_rewards
from pipeline.store.records import find_record
from schemas.errors import DataError
from schemas.keys import commit_key, grade_stage
from schemas.records.runs import RolloutManifest
from schemas.records.shards import Commit


def forget_rewards(
    run: Run, rollout: RolloutManifest, fingerprint: str, *, progress: Progress
) -> int:
    """Forget the units that another grader graded, or on whose rows it failed; return how many.

    Damaged units go too. The manifest goes first, so that a kill leaves no manifest of what is
    gone.

    Args:
        run: the run.
        rollout: what was graded.
        fingerprint: of the work that stays.
        progress: told of each unit that is looked at.
    """
    stage, forgotten = grade_stage(rollout.teacher), list[str]()
    folder = run.stage_folder(rollout.round, stage)
    progress.start("look at rewards", len(rollout.units), 0)
    try:
        for unit in rollout.units:
            if not _stays(run, commit_key(folder, unit.unit), fingerprint):
                forgotten.append(unit.unit)
            progress.advance()
    finally:
        progress.stop()
    if forgotten or _is_other(run, rollout, fingerprint):
        run.storage.delete(run.manifest_key(rollout.round, stage))
    for name in forgotten:
        run.storage.delete(commit_key(folder, name))
    return len(forgotten)


def _stays(run: Run, key: str, fingerprint: str) -> bool:
    """Return whether a unit has no commit, or one whose rewards are as good as they get."""
    try:
        commit = find_record(run.storage, key, Commit)
        if commit is None:
            return True
        if commit.fingerprint != fingerprint:
            return False
        faults = read_rewards(run.storage, commit.shard).column("fault").unique()
    except DataError:
        return False
    return not FAULTS & set(faults.to_pylist())


def _is_other(run: Run, rollout: RolloutManifest, fingerprint: str) -> bool:
    try:
        manifest = run.rewards(rollout.round, rollout.teacher)
    except DataError:
        return True
    return manifest is not None and manifest.fingerprint != fingerprint
