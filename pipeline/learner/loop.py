"""The loop of a round: resume, step, save, export; each phase returns values."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from pipeline.checkpoints.opening import opened_model
from pipeline.learner.batches import StepPlan, epoch_order, plan_steps
from pipeline.learner.data import RoundData, Rows
from pipeline.learner.export import publish_student
from pipeline.learner.inputs import TrainInputs
from pipeline.learner.learner import Learner
from pipeline.learner.ranks import (
    Ranks,
    from_main,
    gather_objects,
    together,
)
from pipeline.learner.settings import LearnerSettings, learning_rate_at, seed_dropout
from pipeline.learner.states import find_state, load_state, misfit, save_state
from pipeline.models.source import ModelSource
from pipeline.runs.reporting import Progress
from pipeline.runs.run import Run
from pipeline.store.commit import committed_units
from schemas.config.train import TrainSection
from schemas.errors import DataError
from schemas.keys import commit_key
from schemas.randomness import derived_seed
from schemas.records.training import StateManifest

PROBE_TOKENS = 256
"""Tokens of the sequences that an exported checkpoint is compared on; one sequence at least."""


PROBE_FROM_ROWS = 64
"""Rows of a round that these sequences are chosen from, the shortest ones."""


@dataclass(frozen=True)
class RoundWork:
    """Everything that one process needs to train a round."""

    run: Run
    inputs: TrainInputs
    data: RoundData
    steps: list[StepPlan]
    ranks: Ranks
    progress: Progress

    @property
    def train(self) -> TrainSection:
        """Return the settings of the learner."""
        return self.run.config.train

    def state_key(self, step: int) -> str:
        """Return the key of the learner's state after a step."""
        folder = self.run.stage_folder(self.inputs.round_index, "train")
        kind = f"{self.ranks.count}x-zero{self.train.zero_stage}-{self.train.dtype}"
        return commit_key(folder, f"step-{step:06d}-{kind}")


def round_data(run: Run, inputs: TrainInputs) -> RoundData:
    """Return the rows of a round as the learner reads them."""
    train = run.config.train
    return RoundData(
        run.storage,
        inputs.rollout,
        inputs.scores,
        oldest_round=inputs.round_index - train.max_staleness,
        keep=2 * train.shuffle_shards,
    )


@contextmanager
def policy_source(work: RoundWork) -> Iterator[ModelSource]:
    """Give a machine's processes one copy of the checkpoint that sampled the round."""
    ranks, policy = work.ranks, work.inputs.policy
    with ExitStack() as stack:
        model = opened_model(work.run, policy)
        mine = together(lambda: stack.enter_context(model) if ranks.local_rank == 0 else None)
        source: ModelSource = gather_objects(mine)[ranks.rank - ranks.local_rank]
        yield source


def planned_steps(run: Run, round_index: int, data: RoundData, ranks: Ranks) -> list[StepPlan]:
    """Return the optimizer steps of a round: which rows each takes, on every rank."""
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


def train_round(work: RoundWork, source: ModelSource) -> tuple[StateManifest, int]:
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


def _resume(work: RoundWork, learner: Learner) -> StateManifest:
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


def _find_states(work: RoundWork) -> _Found:
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


def _usable(work: RoundWork, key: str | None) -> tuple[StateManifest | None, str]:
    """Return a state that this learner can load, or None and why not."""
    state = find_state(work.run, key)
    if state is None:
        return None, "it was deleted"
    why = misfit(state, work.train, work.ranks)
    return (None, why) if why else (state, "")


def _loop(work: RoundWork, learner: Learner, state: StateManifest) -> StateManifest:
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
