"""Rewards and answers that a round trains by: found, and held against configuration and rollout."""

from functools import partial

from pipeline.learner.feed.advantages import RewardInputs
from pipeline.learner.feed.gates import GateInputs, TeacherAnswers
from pipeline.runs.run import Run, rollout_command
from pipeline.store.records import check_fingerprint
from schemas.errors import ConfigError, DataError, IdentityError
from schemas.keys import GRADE, grade_stage, teacher_label
from schemas.records.runs import RolloutManifest


def find_rewards(run: Run, rollout: RolloutManifest) -> RewardInputs | None:
    """Return the rewards of a round; None where the configuration has no [reward].

    Raises:
        ConfigError: the round is not graded.
        IdentityError: it was graded by another grader, or another rollout was.
        DataError: not every row of every unit was.
    """
    section = run.config.reward
    if section is None:
        return None
    manifest, key = run.rewards(rollout.round), run.manifest_key(rollout.round, GRADE)
    if manifest is None:
        raise ConfigError(
            f"round {rollout.round} has no rewards: run `opd grade --round {rollout.round}` first, "
            "or take [reward] out of the configuration"
        )
    check_fingerprint(run.storage, key, manifest.rollout_fingerprint, rollout.fingerprint)
    found = {name: manifest.identity.get(name) for name in section.words()}
    if found != section.words():
        raise IdentityError(
            f"{run.storage.url(key)} has rewards by {found}, the configuration says "
            f"{section.words()}: run `opd grade --round {rollout.round} --again`, or undo that"
        )
    sizes = [[unit.shard.rows for unit in units] for units in (manifest.units, rollout.units)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{run.storage.url(key)} does not grade the rows of its rollout, unit by unit. Delete "
            f"it with the commits beside it, and run `opd grade --round {rollout.round}` again"
        )
    return RewardInputs(manifest, section.advantage)


def find_gate(run: Run, round_index: int) -> GateInputs | None:
    """Return what opens a round's gates; None where all rows distil alike.

    Raises:
        ConfigError: a teacher's answers are asked for, and are not there yet.
    """
    gate = run.config.loss.gate
    if gate is None or not gate.of_rows:
        return None
    if gate.teacher == "any":
        return GateInputs(gate, {})
    found = _evaluated if gate.teacher == "eval" else partial(_sampled, round_index=round_index)
    return GateInputs(gate, {name: found(run, name) for name in run.config.teachers})


def _evaluated(run: Run, teacher: str) -> TeacherAnswers:
    """Return what a teacher answered in its evaluation, before the first round."""
    manifest = run.baseline(teacher_label(teacher))
    if manifest is None:
        raise ConfigError(
            f"loss.gate.teacher = 'eval' asks what teacher {teacher!r} answered, and it is not "
            "evaluated: run `opd eval --baseline` first"
        )
    return TeacherAnswers(manifest.fingerprint, manifest.units)


def _sampled(run: Run, teacher: str, *, round_index: int) -> TeacherAnswers:
    """Return what a teacher answered to the prompts of a round."""
    rollout, rewards = run.rollout(round_index, teacher), run.rewards(round_index, teacher)
    if rollout is None or rewards is None:
        raise ConfigError(
            f"loss.gate.teacher = 'samples' asks what teacher {teacher!r} answers in round "
            f"{round_index}: run `{rollout_command(round_index, teacher)}` and `opd grade --round "
            f"{round_index} --teacher {teacher}` first, or `opd run` for everything in order"
        )
    key = run.manifest_key(round_index, grade_stage(teacher))
    check_fingerprint(run.storage, key, rewards.rollout_fingerprint, rollout.fingerprint)
    return TeacherAnswers(rewards.fingerprint, rewards.units)


def other_grader(run: Run, rewards: RewardInputs | None) -> str | None:
    """Return in words that a round learns from another grader than the round before, or None."""
    if rewards is None or not rewards.manifest.round:
        return None
    before = run.rewards(rewards.manifest.round - 1)
    if before is None or before.grader == rewards.manifest.grader:
        return None
    return (
        f"round {rewards.manifest.round} learns from rewards by another grader, or another version "
        "of it, than the round before"
    )
