"""One run: its configuration, its store, its keys, and the record that pins its identity."""

from dataclasses import dataclass
from typing import Any

from pipeline.runs.ownfile import own_loss
from pipeline.runs.software import software_versions
from pipeline.store.place import ConfigPlace, PlacedConfig
from pipeline.store.records import create_record, find_record
from pipeline.store.storage import Storage
from pipeline.store.writer import require_safe_writes
from schemas.config.file import identity_of
from schemas.config.profiles.base import Base
from schemas.config.run import RunConfig
from schemas.errors import ConfigError, DataError, IdentityError
from schemas.fingerprint import fingerprint
from schemas.keys import (
    baseline_folder,
    checkpoint_folder,
    grade_stage,
    manifest_key,
    plan_key,
    run_folder,
    run_key,
    sample_stage,
    score_stage,
    stage_folder,
)
from schemas.records.rewards import RewardManifest
from schemas.records.runs import EvalManifest, RolloutManifest, RolloutPlan, RunRecord
from schemas.records.scores import ScoreManifest
from schemas.records.training import CheckpointManifest, TrainManifest

PROFILE = "profile"
"""Name under which a run's record holds the profile of its TOML, beside versions of software."""

OWN_LOSS = "loss.kind (sha256 of its file)"
"""What the identity of a run calls the code of its own loss."""


@dataclass(frozen=True)
class Run:
    """A configuration, the store that holds its objects, and where its relative paths start."""

    config: RunConfig
    storage: Storage
    place: ConfigPlace
    base: Base | None = None
    """The profile that its TOML names."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.config.run.name

    @property
    def folder(self) -> str:
        """Key prefix of everything that belongs to the run alone."""
        return run_folder(self.name)

    def stage_folder(self, round_index: int, stage: str) -> str:
        """Return the key prefix of a stage of a round."""
        return stage_folder(self.name, round_index, stage)

    def manifest_key(self, round_index: int, stage: str) -> str:
        """Return the key of a stage's manifest; `score_stage(teacher)` is a stage too."""
        return manifest_key(self.stage_folder(round_index, stage))

    def checkpoint_folder(self, index: int | None) -> str:
        """Return the key prefix of a checkpoint; 0 is the imported student, r + 1 ends round r.

        None is the base that the others are adapters of, where an adapter is trained.
        """
        return checkpoint_folder(self.name, index)

    def rollout(
        self, round_index: int, teacher: str | None = None, *, plan: RolloutPlan | None = None
    ) -> RolloutManifest | None:
        """Return the manifest of what a round sampled, or None before it is there.

        Args:
            round_index: the round.
            teacher: whose samples; None for the student's.
            plan: of what was sampled, where it was read already.

        Raises:
            DataError: it is damaged, or not what the round's plan says.
        """
        key = self.manifest_key(round_index, sample_stage(teacher))
        found = find_record(self.storage, key, RolloutManifest)
        if found is not None:
            _check_planned(self, found, key, plan or self.plan(round_index, teacher))
        return found

    def plan(self, round_index: int, teacher: str | None = None) -> RolloutPlan | None:
        """Return what a round samples, or a teacher in it, or None before that is fixed."""
        key = plan_key(self.stage_folder(round_index, sample_stage(teacher)))
        return find_record(self.storage, key, RolloutPlan)

    def score(self, round_index: int, teacher: str) -> ScoreManifest | None:
        """Return a teacher's score manifest of a round, or None before it is there."""
        key = self.manifest_key(round_index, score_stage(teacher))
        return find_record(self.storage, key, ScoreManifest)

    def rewards(self, round_index: int, teacher: str | None = None) -> RewardManifest | None:
        """Return the rewards of a round's samples, or of a teacher's, or None before they exist."""
        key = self.manifest_key(round_index, grade_stage(teacher))
        return find_record(self.storage, key, RewardManifest)

    def train(self, round_index: int) -> TrainManifest | None:
        """Return the train manifest of a round, or None before it is there."""
        return find_record(self.storage, self.manifest_key(round_index, "train"), TrainManifest)

    def checkpoint(self, index: int | None) -> CheckpointManifest | None:
        """Return the manifest of a checkpoint, or None before it is there."""
        key = manifest_key(self.checkpoint_folder(index))
        return find_record(self.storage, key, CheckpointManifest)

    def evaluation(self, round_index: int) -> EvalManifest | None:
        """Return the evaluation of the student that a round trained, or None without one."""
        return find_record(self.storage, self.manifest_key(round_index, "eval"), EvalManifest)

    def baseline(self, label: str) -> EvalManifest | None:
        """Return the evaluation of the student as it came or of a teacher, or None without one."""
        key = manifest_key(baseline_folder(self.name, label))
        return find_record(self.storage, key, EvalManifest)


def _check_planned(run: Run, manifest: RolloutManifest, key: str, plan: RolloutPlan | None) -> None:
    differs = "the plan is gone" if plan is None else manifest.departs(plan)
    if differs:
        raise DataError(
            f"{run.storage.url(key)} is not what its round's plan says: {differs}. Restore both; "
            "or delete the manifest and run "
            f"`{rollout_command(manifest.round, manifest.teacher)}`, which makes it again from "
            "what is committed"
        )


def rollout_command(round_index: int, teacher: str | None) -> str:
    """Return the command that samples a round, or a teacher's samples of it."""
    whose = "" if teacher is None else f" --teacher {teacher}"
    return f"opd rollout --round {round_index}{whose}"


def open_run(placed: PlacedConfig) -> Run:
    """Return a run to read from.

    Raises:
        ConfigError: the root cannot be a store.
    """
    config, place = placed.config, placed.place
    storage = Storage(place.resolve(config.run.root), config.storage)
    return Run(config, storage, place, placed.base)


def pin_run(run: Run) -> None:
    """Make sure that the root can be written to, and record what the run is at its first stage.

    Raises:
        IdentityError: another process began the run with other settings.
        StorageError: the store cannot be written, or ignores create-only writes.
    """
    require_safe_writes(run.storage)
    key = run_key(run.name)
    if run.storage.exists(key):
        return
    identity = _identity(run)
    record = RunRecord(
        name=run.name,
        fingerprint=fingerprint(identity),
        identity=identity,
        software=software_versions() | ({PROFILE: run.base.name} if run.base else {}),
    )
    create_record(run.storage, key, record)
    check_run(run)


def check_run(run: Run) -> None:
    """Make sure that a run that has begun still has the settings it began with.

    Raises:
        IdentityError: a key that defines results was changed after the run began.
        ConfigError: the file of its own loss is not there.
    """
    own_loss(run.config.loss, run.place)
    changes = changed_settings(run)
    if changes:
        raise IdentityError(
            f"{run.storage.url(run_key(run.name))} belongs to another configuration:\n"
            + "\n".join(f"  {change}" for change in changes)
            + _other_profile(run)
            + "\nUndo the change, or give the new settings a run.name of their own: cached scores "
            "are shared between the runs of a root"
        )


def _other_profile(run: Run) -> str:
    """Return how to have the profile that a run began with, where its TOML means another one."""
    stands = find_record(run.storage, run_key(run.name), RunRecord)
    before = stands.software.get(PROFILE) if stands else None
    if run.base is None or before in (None, run.base.name):
        return ""
    return (
        f"\nThe run began with the profile {before}, and its base means {run.base.name} now: write "
        f'base = "{before}" to have the values that it began with'
    )


def changed_settings(run: Run) -> list[str]:
    """Return each setting that differs from what the run began with, in words."""
    stands = find_record(run.storage, run_key(run.name), RunRecord)
    now = _identity(run)
    if stands is None or stands.fingerprint == fingerprint(now):
        return []
    before = stands.identity
    return [
        f"{name}: the run began with {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _identity(run: Run) -> dict[str, Any]:
    """Return what defines a run's results: keys, and the bytes of a loss of its own."""
    try:
        own = own_loss(run.config.loss, run.place)
    except ConfigError:  # stages are told by `check_run`
        return {**identity_of(run.config), OWN_LOSS: None}
    return identity_of(run.config) | ({} if own is None else {OWN_LOSS: own.sha256})
