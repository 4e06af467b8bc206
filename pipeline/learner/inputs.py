"""What a round trains on: its rollout, the scores of every teacher, the policy, all agreeing."""

from dataclasses import dataclass
from typing import Any

from pipeline.checkpoints.student import policy_of_round
from pipeline.learner.feed.advantages import RewardInputs
from pipeline.learner.feed.gates import GateInputs
from pipeline.learner.rewards import find_gate, find_rewards
from pipeline.runs.ownfile import OwnFunction, own_loss
from pipeline.runs.run import Run, check_run, rollout_command
from pipeline.store.records import check_fingerprint, read_record
from schemas.config.run import signal_of
from schemas.errors import ConfigError, DataError, IdentityError
from schemas.fingerprint import fingerprint
from schemas.keys import score_stage, scorer_key, teacher_key
from schemas.records.runs import RolloutManifest, TeacherRecord
from schemas.records.scores import ScoreManifest, ScorerIdentity
from schemas.records.training import CheckpointManifest, TrainManifest


@dataclass(frozen=True)
class TrainInputs:
    """Manifests that a round's training starts from."""

    round_index: int
    rollout: RolloutManifest
    scores: dict[str, ScoreManifest]
    policy: CheckpointManifest
    first_step: int
    """Optimizer steps of the rounds before."""
    rewards: RewardInputs | None = None
    own_loss: OwnFunction | None = None
    """The loss, where it is the user's own."""
    gate: GateInputs | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of everything that is trained on."""
        scorers = {name: manifest.scorer for name, manifest in self.scores.items()}
        words: dict[str, Any] = {"rollout": self.rollout.fingerprint, "scorers": scorers}
        if self.rewards is not None:
            words["rewards"] = [self.rewards.manifest.fingerprint, self.rewards.kind]
        if self.own_loss is not None:
            words["loss"] = self.own_loss.sha256
        if self.gate is not None and self.gate.answers:
            words["answers"] = {name: a.fingerprint for name, a in self.gate.answers.items()}
        return fingerprint(words)

    def shard_keys(self) -> tuple[str, ...]:
        """Return the keys of all shards that are read."""
        scored = [unit for manifest in self.scores.values() for unit in manifest.units]
        rewarded = self.rewards.manifest.units if self.rewards is not None else ()
        answers = self.gate.answers.values() if self.gate is not None else ()
        answered = [unit for answer in answers for unit in answer.units]
        units = (*self.rollout.units, *scored, *rewarded, *answered)
        return tuple(unit.shard.key for unit in units)


def find_work(run: Run, round_index: int) -> TrainInputs | TrainManifest:
    """Return what a round trains on, or its manifest where it is trained already.

    Raises:
        ConfigError: the round is not sampled or not scored, or the one before is not trained.
        IdentityError: the scores are of another teacher, another rollout or another run.
    """
    check_run(run)
    return run.train(round_index) or find_inputs(run, round_index)


def find_inputs(run: Run, round_index: int) -> TrainInputs:
    """Return what a round trains on.

    Raises:
        ConfigError: the round is not sampled, scored or graded, or the one before is not trained.
        IdentityError: the scores are of another teacher, another rollout or another run; or the
            rewards of another grader.
    """
    if run.config.is_supervised:
        return _supervised(run, round_index)
    rollout = run.rollout(round_index)
    if rollout is None:
        raise ConfigError(
            f"round {round_index} has no finished rollout: run `opd rollout --round {round_index}` "
            "and `opd score` first, or `opd run` for everything in order"
        )
    policy = policy_of_round(run, round_index)
    key = run.manifest_key(round_index, "rollout")
    check_fingerprint(run.storage, key, rollout.policy_version, policy.policy_version)
    scores = {name: _scores(run, round_index, name, rollout) for name in run.config.teachers}
    _check_covered(run, rollout, scores)
    first_step, rewards = _first_step(run, round_index), find_rewards(run, rollout)
    return TrainInputs(
        round_index,
        rollout,
        scores,
        policy,
        first_step,
        rewards=rewards,
        own_loss=own_loss(run.config.loss, run.place),
        gate=find_gate(run, round_index),
    )


def _supervised(run: Run, round_index: int) -> TrainInputs:
    """Return what the teacher sampled, which nobody scores."""
    teacher = run.config.default_teacher
    rollout = run.rollout(round_index, teacher)
    if rollout is None:
        raise ConfigError(
            f"round {round_index} has no samples of its teacher, which loss.kind = 'sft' learns: "
            f"run `{rollout_command(round_index, teacher)}` first, or `opd run` for everything"
        )
    policy = policy_of_round(run, round_index)
    return TrainInputs(round_index, rollout, {}, policy, _first_step(run, round_index))


def _scores(run: Run, round_index: int, teacher: str, rollout: RolloutManifest) -> ScoreManifest:
    manifest = run.score(round_index, teacher)
    key = run.manifest_key(round_index, score_stage(teacher))
    if manifest is None:
        raise ConfigError(
            f"round {round_index} is not scored by teacher {teacher!r}: run "
            f"`opd score --round {round_index}` first"
        )
    check_fingerprint(run.storage, key, manifest.rollout_fingerprint, rollout.fingerprint)
    identity = read_record(run.storage, scorer_key(manifest.scorer), ScorerIdentity)
    pinned = read_record(run.storage, teacher_key(run.name, teacher), TeacherRecord)
    if identity.model != pinned.model or identity.key != manifest.scorer:
        raise IdentityError(
            f"{run.storage.url(key)} names scores of another teacher: found model "
            f"{identity.model}, but this run's {teacher!r} is {pinned.model}. Delete that manifest "
            f"with the commits beside it and run `opd score --round {round_index}` again"
        )
    expected = signal_of(run.config).words()
    if run.config.teachers[teacher].scores is None and identity.signal != expected:
        raise IdentityError(
            f"{run.storage.url(key)} names scores with signal {identity.signal}, the configuration "
            f"asks for {expected}"
        )
    return manifest


def _check_covered(run: Run, rollout: RolloutManifest, scores: dict[str, ScoreManifest]) -> None:
    """Make sure that every row of every unit is scored by one teacher.

    Raises:
        DataError: a manifest names fewer or more units than the rollout, or other rows.
    """
    sampled = [(unit.shard.rows, unit.shard.tokens) for unit in rollout.units]
    for manifest in scores.values():
        if len(manifest.units) != len(sampled):
            units = f"{len(manifest.units)} of {len(sampled)} units"
            raise _uncovered(run, rollout, f"teacher {manifest.teacher} scored {units}")
    for index, unit in enumerate(rollout.units):
        shards = [manifest.units[index].shard for manifest in scores.values()]
        found = sum(shard.rows for shard in shards), sum(shard.tokens for shard in shards)
        if found != sampled[index]:
            told = f"{found[0]} rows and {found[1]} tokens of unit {unit.unit} are scored, "
            told += f"{sampled[index][0]} and {sampled[index][1]} are sampled"
            raise _uncovered(run, rollout, told)


def _uncovered(run: Run, rollout: RolloutManifest, found: str) -> DataError:
    places = [run.manifest_key(rollout.round, score_stage(name)) for name in run.config.teachers]
    return DataError(
        f"{', '.join(map(run.storage.url, places))}: {found}. Restore the manifest; or delete it "
        f"with the commits beside it and run `opd score --round {rollout.round}`: scores that are "
        "in the cache are not made again"
    )


def _first_step(run: Run, round_index: int) -> int:
    if round_index == 0:
        return 0
    before = run.train(round_index - 1)
    if before is None:
        raise ConfigError(f"round {round_index - 1} is not trained yet: run it first")
    return before.first_step + before.steps
