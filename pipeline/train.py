"""The train stage: the learner turns a round's scored sequences into the next checkpoint.

Promises: no teacher is touched; a checkpoint is reloaded and compared before it is committed; run
again after a crash, the stage goes on from the last saved state.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np

from pipeline.batches import StepPlan, epoch_order, plan_steps
from pipeline.checkpoint import opened_model
from pipeline.commit import commit_key, committed_units, create_record, writer
from pipeline.distributed import (
    Ranks,
    from_main,
    gather_objects,
    is_alone,
    ranks_joined,
    together,
)
from pipeline.learner import Learner, LearnerSettings, learning_rate_at, seed_dropout
from pipeline.learnerstate import drop_states, find_state, load_state, misfit, save_state
from pipeline.metrics import steps_shard
from pipeline.models import ModelSource
from pipeline.rounddata import RoundData, Rows
from pipeline.run import Run, pin_run
from pipeline.stage import Progress, StageResult
from pipeline.traininputs import TrainInputs, find_work
from pipeline.trainoutput import publish_student
from schemas.config import TrainSection
from schemas.errors import DataError
from schemas.fingerprint import derived_seed
from schemas.manifest import StateManifest, TrainManifest

PROBE_TOKENS = 256
"""Tokens of the sequences that an exported checkpoint is compared on; one sequence at least."""

PROBE_FROM_ROWS = 64
"""Rows of a round that these sequences are chosen from, the shortest ones."""

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
        kind = f"{self.ranks.count}x-zero{self.train.zero_stage}-{self.train.dtype}"
        return commit_key(folder, f"step-{step:06d}-{kind}")


def run_train(run: Run, round_index: int, *, progress: Progress) -> StageResult:
    """Train a round's checkpoint; every process of the learner calls this.

    Raises:
        ConfigError: the round is not sampled or not scored.
        IdentityError: the scores are of another teacher, rollout or run.
        DataError: a shard is damaged, a loss is not a number, or the export differs.
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
    with writer(run.storage) if ranks.is_main else nullcontext():
        from_main(lambda: pin_run(run))
        data = together(lambda: _round_data(run, inputs))
        steps = together(lambda: _plan(run, inputs.round_index, data, ranks))
        work = _Round(run, inputs, data, steps, ranks, progress)
        with _policy_source(work) as source:
            state, trained = _train(work, source)
        manifest = from_main(lambda: _finish(work, state))
    return finished_result(run, manifest, trained=trained)


def _round_data(run: Run, inputs: TrainInputs) -> RoundData:
    train = run.config.train
    return RoundData(
        run.storage,
        inputs.rollout,
        inputs.scores,
        oldest_round=inputs.round_index - train.max_staleness,
        keep=2 * train.shuffle_shards,
    )


@contextmanager
def _policy_source(work: _Round) -> Iterator[ModelSource]:
    """Give a machine's processes one copy of the checkpoint that sampled the round."""
    ranks, policy = work.ranks, work.inputs.policy
    with ExitStack() as stack:
        model = opened_model(work.run, policy)
        mine = together(lambda: stack.enter_context(model) if ranks.local_rank == 0 else None)
        source: ModelSource = gather_objects(mine)[ranks.rank - ranks.local_rank]
        yield source


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


def _train(work: _Round, source: ModelSource) -> tuple[StateManifest, int]:
    """Train the steps that are left and publish the student; return the final state."""
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
            source=source,
            probe=work.data.batch(_probe_rows(work.data)),
            state=state,
            state_key=work.state_key(len(state.steps)),
        )
    finally:
        learner.close()
    return state, len(state.steps) - begun


def _probe_rows(data: RoundData) -> Rows:
    """Return a few short rows to compare an export with: their logits are held whole."""
    short = np.argsort(data.total_tokens[:PROBE_FROM_ROWS], kind="stable")
    fits = np.cumsum(data.total_tokens[short]) <= PROBE_TOKENS
    return np.sort(short[: max(1, int(fits.sum()))])


def _resume(work: _Round, learner: Learner) -> StateManifest:
    """Restore the newest state that fits: of this round, else the end of the last one."""
    inside, before, notes = from_main(lambda: _find_states(work))
    for note in notes:
        work.progress.note(note)
    found = inside or before
    if found is not None:
        load_state(work.run, found, learner, work.ranks)
    if inside is not None:
        return inside
    return StateManifest(
        step=work.inputs.first_step,
        world_size=work.ranks.count,
        zero_stage=work.train.zero_stage,
        dtype=work.train.dtype,
        steps=(),
        optimizer_restarted=before is None and work.inputs.round_index > 0,
        files={},
    )


_Found = tuple[StateManifest | None, StateManifest | None, list[str]]


def _find_states(work: _Round) -> _Found:
    """Return the newest state of this round, else that of the last, and what could not be used."""
    folder = work.run.stage_folder(work.inputs.round_index, "train")
    notes: list[str] = []
    for name in sorted(committed_units(work.run.storage, folder), reverse=True):
        inside, why = _usable(work, commit_key(folder, name))
        if inside is not None:
            return inside, None, notes
        notes.append(f"the saved state {name} cannot be used: {why}")
    before, why = _usable(work, work.inputs.policy.state)
    if before is None and work.inputs.round_index > 0:
        notes.append(
            f"the optimizer starts afresh, the weights are the checkpoint's: the state that the "
            f"last round ended with cannot be used: {why}"
        )
    return None, before, notes


def _usable(work: _Round, key: str | None) -> tuple[StateManifest | None, str]:
    """Return a state that this learner can load, or None and why not."""
    state = find_state(work.run, key)
    if state is None:
        return None, "it was deleted"
    why = misfit(state, work.train, work.ranks)
    return (None, why) if why else (state, "")


def _loop(work: _Round, learner: Learner, state: StateManifest) -> StateManifest:
    total, every = len(work.steps), work.train.save_steps
    work.progress.start("train", total, len(state.steps))
    try:
        for index in range(len(state.steps), total):
            plan = work.steps[index]
            rate = learning_rate_at(work.inputs.first_step + index, work.train)
            seed_dropout(work.run.config.run.seed, work.inputs.first_step + index, work.ranks.rank)
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
                    record=state,
                )
            work.progress.advance(1, tokens=plan.trained_tokens)
    finally:
        work.progress.stop()
    return state


def _finish(work: _Round, state: StateManifest) -> TrainManifest:
    """Write and return the train manifest; for the main process alone."""
    run, inputs, data = work.run, work.inputs, work.data
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
        rollout_kl=state.steps[0]["rollout_kl"] if _drew_its_own(run) else None,
    )
    key = run.manifest_key(inputs.round_index, "train")
    manifest = create_record(run.storage, key, record)
    _drop_old_states(run, inputs.round_index)
    return manifest


def _drew_its_own(run: Run) -> bool:
    """Return whether a round's samples are draws from the very student that is trained on them."""
    rollout = run.config.rollout
    whole = rollout.temperature == 1.0 and rollout.top_p == 1.0 and rollout.top_k == 0
    return whole and run.config.train.max_staleness == 0


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
        extra={
            "steps": manifest.steps,
            "stale_rows": manifest.stale_rows,
            **manifest.summary,
            "first_rollout_kl": manifest.rollout_kl,
            "checkpoint": run.storage.url(run.checkpoint_folder(manifest.round + 1)),
        },
    )
