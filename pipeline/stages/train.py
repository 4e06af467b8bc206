"""The train stage: the learner turns a round's scored sequences into the next checkpoint.

Promises: no teacher is touched; a checkpoint is reloaded and compared before it is committed; run
again after a crash, the stage resumes from the last saved state.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from pipeline.learner.inputs import TrainInputs, find_work
from pipeline.learner.metrics import Step, applied, drew_its_own, steps_shard
from pipeline.learner.ranks import Ranks, from_main, is_alone, ranks_joined
from pipeline.learner.rewards import other_grader
from pipeline.learner.states import drop_states
from pipeline.runs.figures import TrainFigures
from pipeline.runs.leases import at_work
from pipeline.runs.progress import Progress
from pipeline.runs.reporting import StageResult, keeps_failure
from pipeline.runs.run import Run, pin_run
from pipeline.store.commit import committed_units
from pipeline.store.records import create_record
from schemas.errors import DataError
from schemas.keys import commit_key
from schemas.records.training import TrainManifest

if TYPE_CHECKING:
    from pipeline.learner.loop import TrainedRound

LEARNER = "learner"
"""Name of the lease that shows who trains a round."""

KEEP_STATES = 2
"""Rounds whose final optimizer state is kept; older ones are deleted."""


@keeps_failure("train")
def run_train(run: Run, round_index: int, *, progress: Progress) -> StageResult:
    """Train a round's checkpoint; every process of the learner calls this.

    Raises:
        ConfigError: the round is not sampled or not scored, or a loss or a weight is no number.
        IdentityError: the scores are of another teacher, rollout or run.
        DataError: a shard or a state is damaged, or the export differs.
    """
    work = find_work(run, round_index) if is_alone() else None  # mistakes first: torch is slow
    if isinstance(work, TrainManifest):
        return finished_result(run, work)
    with ranks_joined(run.config.train.device) as ranks:
        work = work or from_main(lambda: find_work(run, round_index))
        if isinstance(work, TrainManifest):
            return finished_result(run, work)
        return _run_round(run, work, ranks, progress)


def _run_round(run: Run, inputs: TrainInputs, ranks: Ranks, progress: Progress) -> StageResult:
    from pipeline.learner.loop import train_round

    from_main(lambda: pin_run(run))
    if told := from_main(lambda: other_grader(run, inputs.rewards)):
        progress.note(told)
    folder = run.stage_folder(inputs.round_index, "train")
    with at_work(run.storage, folder, LEARNER) if ranks.is_main else nullcontext():
        trained = train_round(run, inputs, ranks, progress=progress)
        manifest = from_main(lambda: _finish(run, inputs, trained))
    return finished_result(run, manifest, trained=trained)


def _finish(run: Run, inputs: TrainInputs, trained: "TrainedRound") -> TrainManifest:
    """Write and return the train manifest; for the main process alone."""
    state, lengths = trained.state, trained.lengths
    steps = applied(state.steps)
    shard, summary = steps_shard(run, inputs.round_index, inputs.first_step, state.steps)
    checkpoint = run.checkpoint(inputs.round_index + 1)
    if checkpoint is None:
        raise DataError(f"checkpoint {inputs.round_index + 1:04d} vanished while training")
    record = TrainManifest(
        run=run.name,
        round=inputs.round_index,
        fingerprint=inputs.fingerprint,
        policy_version_in=inputs.policy.policy_version,
        policy_version_out=checkpoint.policy_version,
        shards=inputs.shard_keys(),
        rows=int(lengths.usable_R.sum()),
        stale_rows=int((~lengths.fresh_R).sum()),
        untrained_rows=int((lengths.fresh_R & ~lengths.usable_R).sum()),
        tokens=trained.trained_tokens,
        first_step=inputs.first_step,
        steps=len(state.steps),
        optimizer_restarted=state.optimizer_restarted,
        metrics=shard,
        summary=summary,
        rollout_kl=steps[0].get("rollout_kl") if steps and drew_its_own(run) else None,
        skipped_steps=len(state.steps) - len(steps),
        gated=lengths.gated,
        reverse_kl=_first(run, steps, "own_reverse_kl"),
        reverse_kl_error=_first(run, steps, "own_reverse_kl_error"),
    )
    key = run.manifest_key(inputs.round_index, "train")
    manifest = create_record(run.storage, key, record)
    _drop_old_states(run, inputs.round_index)
    return manifest


def _first(run: Run, steps: Sequence[Step], name: str) -> float | None:
    """Return a figure of a round's first step, where its rollout was tempered or cut."""
    return None if run.config.rollout.is_whole or not steps else steps[0].get(name)


def _drop_old_states(run: Run, round_index: int) -> None:
    """Delete the files of states that no later round can start from.

    The round before is looked at again, for a crash may have come before its own turn.
    """
    last = [run.checkpoint(index + 1) for index in range(max(0, round_index - 3), round_index + 1)]
    ends = [found.state for found in last if found is not None and found.state is not None]
    kept = ends[-KEEP_STATES:]
    for index in range(max(0, round_index - 1), round_index + 1):
        folder = run.stage_folder(index, "train")
        ends += [commit_key(folder, name) for name in committed_units(run.storage, folder)]
    drop_states(run, [key for key in ends if key not in kept], keep=kept)


def finished_result(
    run: Run, manifest: TrainManifest, *, trained: "TrainedRound | None" = None
) -> StageResult:
    """Return the result of a trained round, of which this call trained some steps or none."""
    return StageResult(
        stage="train",
        run=run.name,
        round=manifest.round,
        units=trained.new_steps if trained else 0,
        rows=manifest.rows,
        tokens=manifest.tokens,
        manifest=run.storage.url(run.manifest_key(manifest.round, "train")),
        figures=TrainFigures(
            steps=manifest.steps,
            stale_rows=manifest.stale_rows,
            summary=manifest.summary,
            first_rollout_kl=manifest.rollout_kl,
            checkpoint=run.storage.url(run.checkpoint_folder(manifest.round + 1)),
            data_wait_share=trained.data_wait_share if trained else None,
        ),
    )
