"""The loop of a round: resume, step, save, export; each phase returns values."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from pipeline.checkpoints.opening import opened_model
from pipeline.engines.kept import done, once, put, take
from pipeline.learner.batches import StepPlan, plan_mark, round_steps, steps_of_old
from pipeline.learner.export import publish_student
from pipeline.learner.feed.ahead import Ahead
from pipeline.learner.feed.data import RoundData
from pipeline.learner.feed.domains import weigh_domains
from pipeline.learner.feed.probe import probe_rows
from pipeline.learner.inputs import TrainInputs
from pipeline.learner.learner import Learner, Micro
from pipeline.learner.machine.units import sharing_units
from pipeline.learner.metrics import applied, check_first_step, skip_note
from pipeline.learner.objective.rounds import round_settings, what_it_reads
from pipeline.learner.ranks import Ranks, from_main, gather_objects, together
from pipeline.learner.sequences import Lengths, Rows
from pipeline.learner.settings import LearnerSettings, decayed, learning_rate_at, seed_dropout
from pipeline.learner.states import check_place, load_state, misplaced, save_state, usable
from pipeline.models.source import ModelSource
from pipeline.runs.progress import Progress
from pipeline.runs.run import Run
from pipeline.store.commit import committed_units
from schemas.config.train import TrainSection
from schemas.keys import commit_key
from schemas.records.training import StateManifest

LEARNER = "learner"
"""Where the learner is kept between rounds."""


@dataclass(frozen=True)
class TrainedRound:
    """What training a round left in the store, besides the checkpoint, and what it took."""

    state: StateManifest
    """After the last step."""
    lengths: Lengths
    trained_tokens: int
    """Of all steps."""
    new_steps: int
    """Steps of this call; those before a crash are in the state too."""
    data_wait_share: float | None
    """Share of this call's steps' time for which the process that waited longest had no data."""


def train_round(run: Run, inputs: TrainInputs, ranks: Ranks, *, progress: Progress) -> TrainedRound:
    """Train what is left of a round and publish the student; every process must call.

    Raises:
        DataError: a shard or a state is damaged, there is nothing to train on, or the export
            differs.
        ConfigError: a loss or a gradient norm is no number again and again, or a weight is none.
        IdentityError: a shard holds the scores of another teacher, or rows of another policy.
    """
    keep = 2 * run.config.train.shuffle_shards
    with sharing_units(ranks, keep=keep) as share:
        data = RoundData(
            run.storage,
            inputs.rollout,
            inputs.scores,
            keep=keep,
            rewards=inputs.rewards,
            gate=inputs.gate,
            share=share,
            **what_it_reads(run, inputs),
        )
        return _train_rows(run, inputs, data, ranks, progress)


def _train_rows(
    run: Run, inputs: TrainInputs, data: RoundData, ranks: Ranks, progress: Progress
) -> TrainedRound:
    train = run.config.train
    oldest = inputs.round_index - train.max_staleness
    lengths = from_main(lambda: data.read_lengths(oldest_round=oldest))
    steps = together(
        lambda: round_steps(
            lengths,
            train,
            run_seed=run.config.run.seed,
            round_index=inputs.round_index,
            processes=ranks.count,
        )
    )
    for told in (*lengths.gate_words(), *weigh_domains(data, run.config.loss)):
        progress.note(told)
    plan, older = plan_mark(steps), steps_of_old(lengths, train) == len(steps)
    plans = (plan, None) if older else (plan,)
    work = _Work(run, inputs, data, lengths, steps, plans, ranks, progress)
    with _policy_source(work) as source:
        state, new_steps, waited = _train(work, source, probe_rows(lengths.total_tokens_R))
    tokens = sum(step.trained_tokens for step in steps)
    return TrainedRound(state, lengths, tokens, new_steps, waited)


@dataclass(frozen=True)
class _Work:
    """Everything that one process needs to train a round."""

    run: Run
    inputs: TrainInputs
    data: RoundData
    lengths: Lengths
    steps: list[StepPlan]
    plans: tuple[str | None, ...]
    """Of the steps; and what states of an older opd have, where it made the same ones."""
    ranks: Ranks
    progress: Progress

    @property
    def train(self) -> TrainSection:
        """Return the settings of the learner."""
        return self.run.config.train

    @property
    def numbers(self) -> range:
        """Return the numbers that the steps of the round have in the run."""
        first = self.inputs.first_step
        return range(first, first + len(self.steps))

    def state_key(self, step: int) -> str:
        """Return the key of the learner's state after a step."""
        folder = self.run.stage_folder(self.inputs.round_index, "train")
        kind = f"{self.ranks.count}x-zero{self.train.zero_stage}-{self.train.dtype}"
        return commit_key(folder, f"step-{step:06d}-{kind}")


@contextmanager
def _policy_source(work: _Work) -> Iterator[ModelSource]:
    """Give a machine's processes one copy of the checkpoint that sampled the round."""
    ranks, policy = work.ranks, work.inputs.policy
    with ExitStack() as stack:
        model = opened_model(work.run, policy)
        mine = together(lambda: stack.enter_context(model) if ranks.local_rank == 0 else None)
        source: ModelSource = gather_objects(mine)[ranks.rank - ranks.local_rank]
        yield source


def _train(
    work: _Work, source: ModelSource, probe: Rows
) -> tuple[StateManifest, int, float | None]:
    """Train the steps that are left and publish the student; return state, steps and waiting."""
    settings = together(lambda: round_settings(work.run, work.inputs))
    found = _found_states(work)
    learner = _learner(work, source, settings, found)
    with ExitStack() as unless_done:
        unless_done.callback(learner.close)
        why = learner.padded_because
        if why and work.train.packing == "auto" and once(("padded", why)):
            work.progress.note(f"rows are padded, not packed (train.packing): {why}")
            done(("padded", why))
        steps = learner.dealt(work.steps, work.lengths.total_tokens_R)
        state, work = _begin(work, found), replace(work, steps=steps)
        begun = len(state.steps)
        state, waited = _loop(work, learner, state)
        publish_student(
            work.run,
            work.inputs,
            learner,
            source=source,
            probe=from_main(lambda: work.data.batch(probe)),
            state=state,
            state_key=work.state_key(len(state.steps)),
        )
        unless_done.pop_all()
    if work.ranks.count == 1:
        put(LEARNER, (work.train, work.ranks, state), learner)
    else:
        learner.close()
    return state, len(state.steps) - begun, waited


def _learner(
    work: _Work, source: ModelSource, settings: LearnerSettings, found: "_Found"
) -> Learner:
    """Return the learner in the state that the round goes on from.

    It may be the one that made this state in the round before.
    """
    inside, before, _ = found
    state = inside or before
    if inside is None and before is not None:
        kept: Learner | None = take(LEARNER, (work.train, work.ranks, before))
        if kept is not None:
            kept.aim_at(settings.loss)
            return kept
    learner = Learner(source, settings, work.ranks)
    with ExitStack() as unless_done:
        unless_done.callback(learner.close)
        if state is not None:
            load_state(work.run, state, learner, work.ranks)
        unless_done.pop_all()
    return learner


def _found_states(work: _Work) -> "_Found":
    """Return the states that a round may go on from, and tell why newer ones cannot be used."""
    found: _Found = from_main(lambda: _find_states(work))
    for note in found[2]:
        work.progress.note(note)
    return found


def _begin(work: _Work, found: "_Found") -> StateManifest:
    """Return the round's own record of where it stands: after its newest state, or before any."""
    inside, before, _ = found
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
        plan=work.plans[0],
        decayed=decayed(work.train),
        inputs=work.inputs.fingerprint,
    )


_Found = tuple[StateManifest | None, StateManifest | None, list[str]]


def _find_states(work: _Work) -> _Found:
    """Return the newest state of this round, else that of the last, and what could not be used."""
    folder = work.run.stage_folder(work.inputs.round_index, "train")
    notes: list[str] = []
    for name in sorted(committed_units(work.run.storage, folder), reverse=True):
        inside, why = usable(work.run, commit_key(folder, name), work.train, work.ranks)
        marks = work.inputs.fingerprint
        if inside is not None and (other := misplaced(inside, plans=work.plans, inputs=marks)):
            inside, why = None, other
        if inside is not None:
            check_place(work.run, commit_key(folder, name), inside, steps=work.numbers)
            return inside, None, notes
        notes.append(f"the saved state {name} cannot be used: {why}")
    before, why = usable(work.run, work.inputs.policy.state, work.train, work.ranks)
    if before is not None:
        check_place(work.run, str(work.inputs.policy.state), before, steps=work.numbers[:0])
    if before is None and work.inputs.round_index > 0:
        notes.append(
            f"the optimizer starts afresh, the weights are the checkpoint's: the state that the "
            f"last round ended with cannot be used: {why}"
        )
    return None, before, notes


def _check_first_step(work: _Work, learner: Learner, metrics: dict[str, float | None]) -> None:
    """Refuse a round whose rollout is not of this learner, before anything of it is saved."""
    plan = from_main(lambda: work.run.plan(work.inputs.round_index))
    check_first_step(work.run, plan, metrics.get("rollout_kl"), vocab_size=learner.vocab_size)


def _loop(
    work: _Work, learner: Learner, state: StateManifest
) -> tuple[StateManifest, float | None]:
    """Train the steps that are left; return the state after them, and the share of waiting."""
    begun, total = len(state.steps), len(work.steps)
    work.progress.start("train", total, begun)
    try:
        with learner.reading_ahead(work.data, work.steps[begun:]) as ahead:
            began_s = time.perf_counter()
            for index in range(begun, total):
                state = _step(work, learner, ahead, state)
                work.progress.advance(1, tokens=work.steps[index].trained_tokens)
            share = ahead.waited_s / max(time.perf_counter() - began_s, 1e-9)
    finally:
        work.progress.stop()
    return state, max(gather_objects(share)) if begun < total else None


def _step(
    work: _Work, learner: Learner, ahead: Ahead[Micro], state: StateManifest
) -> StateManifest:
    """Train the next step; return the state after it, saved where its turn is."""
    index, total, every = len(state.steps), len(work.steps), work.train.save_steps
    number = work.numbers[index]
    seed_dropout(work.run.config.run.seed, number, work.ranks.rank)
    gate, rate = work.run.config.loss.gate, learning_rate_at(number, work.train)
    share = 1.0 if gate is None else gate.factor(number)
    metrics = learner.step(work.steps[index], ahead, rate, distill=share)
    if not applied(state.steps) and applied([metrics]):
        _check_first_step(work, learner, metrics)
    last, steps = index + 1 == total, (*state.steps, metrics)
    note = together(partial(skip_note, steps, is_last=last))
    if note is not None:
        work.progress.note(note)
    state = state.model_copy(update={"step": number + 1, "steps": steps})
    if last or (every and (index + 1) % every == 0):
        state = save_state(work.run, work.state_key(index + 1), learner, record=state)
    return state
