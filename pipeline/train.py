"""The train stage: the learner turns a round's scored sequences into the next checkpoint.

Promises: no teacher is touched; a checkpoint is reloaded and compared before it is committed; run
again after a crash, the stage goes on from the last saved state.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.batches import StepPlan, epoch_order, plan_steps
from pipeline.checkpoint import opened
from pipeline.commit import commit_key, committed_units, create_record, writer
from pipeline.distributed import Ranks, barrier, gather_objects, join_ranks
from pipeline.learner import Learner, LearnerSettings, learning_rate_at
from pipeline.learnerstate import drop_state, find_state, load_state, misfit, save_state
from pipeline.metrics import steps_shard
from pipeline.models import ModelSource
from pipeline.rounddata import RoundData, Rows
from pipeline.run import Run, check_run, pin_run
from pipeline.stage import Progress, StageResult
from pipeline.traininputs import TrainInputs, find_inputs
from pipeline.trainoutput import publish_student
from schemas.config import TrainSection
from schemas.errors import DataError
from schemas.fingerprint import derived_seed
from schemas.manifest import StateManifest, TrainManifest

KEEP_STATES = 2
"""Rounds whose final optimizer state is kept; older ones are deleted."""


@dataclass(frozen=True)
class _Round:
    """Everything that one process needs to train a round."""

    run: Run
    inputs: TrainInputs
    data: RoundData
    steps: list[StepPlan]
    ranks: Ranks
    progress: Progress

    @property
    def train(self) -> TrainSection:
        return self.run.config.train

    def state_key(self, step: int) -> str:
        folder = self.run.stage_folder(self.inputs.round_index, "train")
        return commit_key(folder, f"step-{step:06d}")


def run_train(run: Run, round_index: int, *, progress: Progress) -> StageResult:
    """Train a round's checkpoint; every process of the learner calls this.

    Raises:
        ConfigError: the round is not sampled or not scored.
        IdentityError: the scores are of another teacher, rollout or run.
        DataError: a shard is damaged, a loss is not a number, or the export differs.
    """
    check_run(run)
    manifest = run.train(round_index)
    if manifest is not None:
        return finished_result(run, manifest)
    inputs = find_inputs(run, round_index)
    ranks = join_ranks(run.config.train.device)
    with writer(run.storage) if ranks.is_main else nullcontext():
        if ranks.is_main:
            pin_run(run)
        data = RoundData(
            run.storage,
            inputs.rollout,
            inputs.scores,
            oldest_round=round_index - run.config.train.max_staleness,
            keep=2 * run.config.train.shuffle_shards,
        )
        steps = _plan(run, round_index, data, ranks)
        work = _Round(run, inputs, data, steps, ranks, progress)
        with opened(run, inputs.policy) as folder:
            state, trained = _train(work, folder)
        manifest = _finish(work, state)
    return finished_result(run, manifest, trained=trained)


def _plan(run: Run, round_index: int, data: RoundData, ranks: Ranks) -> list[StepPlan]:
    train = run.config.train
    usable = data.fresh & (data.trained_tokens > 0)
    if not usable.any():
        raise DataError(
            f"round {round_index} has no row to train on: {int((~data.fresh).sum())} are stale, "
            "the others have no token of the student's own"
        )
    orders: list[Rows] = []
    for epoch in range(train.epochs):
        order = epoch_order(
            data.unit_rows,
            seed=derived_seed("train", run.config.run.seed, round_index),
            epoch=epoch,
            shuffle_shards=train.shuffle_shards,
        )
        orders.append(order[usable[order]])
    return plan_steps(
        orders,
        data.total_tokens,
        data.trained_tokens,
        per_step=train.sequences_per_step,
        micro_tokens=train.micro_batch_tokens,
        processes=ranks.count,
    )


def _train(work: _Round, folder: Path) -> tuple[StateManifest, int]:
    """Train the steps that are left and publish the student; return the final state."""
    source = ModelSource(str(folder), None, work.run.config.student.trust_remote_code)
    settings = LearnerSettings(
        train=work.train, loss=work.run.config.loss, accumulation=len(work.steps[0].micro)
    )
    learner = Learner(source, settings, work.ranks)
    try:
        state = _resume(work, learner)
        begun = len(state.steps)
        state = _loop(work, learner, state)
        publish_student(
            work.run,
            work.inputs,
            learner,
            work.ranks,
            folder=folder,
            probe=work.data.batch(np.arange(min(8, len(work.data.fresh)))),
            state=state,
            state_key=work.state_key(len(state.steps)),
        )
    finally:
        learner.close()
    return state, len(state.steps) - begun


def _resume(work: _Round, learner: Learner) -> StateManifest:
    """Restore the newest state that fits: of this round, else the end of the last one."""
    inside, before = (gather_objects(s)[0] for s in _states(work))
    restarted = inside is None and before is None and work.inputs.round_index > 0
    if (inside or before) is not None:
        load_state(work.run, inside or before, learner, work.ranks)
    if restarted:
        work.progress.note(
            "the optimizer starts afresh: no state of the last round fits this learner (other "
            "number of processes, zero_stage or dtype, or deleted); weights are the checkpoint's"
        )
    if inside is not None:
        return StateManifest.model_validate(inside)
    return StateManifest(
        step=work.inputs.first_step,
        world_size=work.ranks.count,
        zero_stage=work.train.zero_stage,
        dtype=work.train.dtype,
        steps=(),
        optimizer_restarted=restarted,
        files={},
    )


def _states(work: _Round) -> tuple[StateManifest | None, StateManifest | None]:
    """Return the newest fitting state inside this round, and that of the end of the last."""
    if not work.ranks.is_main:
        return None, None
    folder = work.run.stage_folder(work.inputs.round_index, "train")
    names = sorted(committed_units(work.run.storage, folder), reverse=True)
    for key in [*(commit_key(folder, name) for name in names), work.inputs.policy.state]:
        state = find_state(work.run, key)
        if state is not None and misfit(state, work.train, work.ranks) is None:
            inside = key != work.inputs.policy.state
            return (state, None) if inside else (None, state)
    return None, None


def _loop(work: _Round, learner: Learner, state: StateManifest) -> StateManifest:
    total, every = len(work.steps), work.train.save_steps
    work.progress.start("train", total, len(state.steps))
    try:
        for index in range(len(state.steps), total):
            plan = work.steps[index]
            rate = learning_rate_at(work.inputs.first_step + index, work.train)
            metrics = learner.step(plan, work.data, rate)
            state = state.model_copy(
                update={
                    "step": work.inputs.first_step + index + 1,
                    "steps": (*state.steps, metrics),
                }
            )
            last = index + 1 == total
            if last or (every and (index + 1) % every == 0):
                state = save_state(
                    work.run,
                    work.state_key(index + 1),
                    learner,
                    work.ranks,
                    record=state,
                )
            work.progress.advance(1, tokens=plan.trained_tokens)
    finally:
        work.progress.stop()
    return state


def _finish(work: _Round, state: StateManifest) -> TrainManifest:
    """Write the train manifest on the main process; return it on every one."""
    run, inputs, data = work.run, work.inputs, work.data
    manifest = None
    if work.ranks.is_main:
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
            rows=int((data.fresh & (data.trained_tokens > 0)).sum()),
            stale_rows=int((~data.fresh).sum()),
            untrained_rows=int((data.fresh & (data.trained_tokens == 0)).sum()),
            tokens=sum(step.trained_tokens for step in work.steps),
            first_step=inputs.first_step,
            steps=len(work.steps),
            optimizer_restarted=state.optimizer_restarted,
            metrics=shard,
            summary=summary,
        )
        key = run.manifest_key(inputs.round_index, "train")
        manifest = create_record(run.storage, key, record)
        _drop_old_states(work, state)
    barrier()
    found: TrainManifest = gather_objects(manifest)[0]
    return found


def _drop_old_states(work: _Round, state: StateManifest) -> None:
    """Delete states inside this round but the last, and the final one of an older round."""
    total, every = len(work.steps), work.train.save_steps
    inside = range(every, total, every) if every else ()
    for step in inside:
        drop_state(work.run, work.state_key(step), keep=state.files)
    old = work.inputs.round_index + 1 - KEEP_STATES
    checkpoint = work.run.checkpoint(old) if old > 0 else None
    if checkpoint is not None:
        drop_state(work.run, checkpoint.state, keep=state.files)


def finished_result(run: Run, manifest: TrainManifest, *, trained: int = 0) -> StageResult:
    """Return the result of a trained round, of which this call trained some steps."""
    return StageResult(
        stage="train",
        run=run.name,
        round=manifest.round,
        units=trained,
        rows=manifest.rows,
        tokens=manifest.tokens,
        manifest=run.storage.url(run.manifest_key(manifest.round, "train")),
        extra={"steps": manifest.steps, "stale_rows": manifest.stale_rows, **manifest.summary},
    )
