"""Records of a run: what it is, its prompts, its rollouts and evaluations."""

from typing import Any

from schemas.fingerprint import fingerprint
from schemas.forms import Count, FileName, Label, Mark, Real, Sha256, Words
from schemas.keys import (
    PROMPTS,
    ROLLOUTS,
    STUDENT,
    admission_key,
    baseline_folder,
    failure_key,
    manifest_key,
    plan_key,
    run_key,
    sample_stage,
    stage_folder,
)
from schemas.records.record import Versioned
from schemas.records.schedule import RoundSchedule
from schemas.records.shards import Shard, UnitShard
from schemas.records.units import flaw_of_units


class RunRecord(Versioned):
    """What a run is, fixed at its first stage."""

    name: FileName
    fingerprint: Mark
    identity: dict[str, Any]
    """Resolved keys that define results, dotted."""
    software: dict[Words, Words]

    def flaw(self) -> str | None:
        """Return how the record contradicts itself: its fingerprint is another identity's."""
        found = fingerprint(self.identity)
        return None if found == self.fingerprint else f"its identity has the fingerprint {found}"

    def misplaced(self, key: str) -> str | None:
        """Return which run it is, where its key is another one's."""
        return None if key == run_key(self.name) else f"the record of run {self.name}"


class PromptsManifest(Versioned):
    """Prompts of a run, tokenised: pinned at first use."""

    source: str
    source_sha256: Sha256
    fingerprint: Mark
    shards: tuple[Shard, ...]
    rows: Count
    skipped: dict[str, Count]

    def flaw(self) -> str | None:
        """Return how the manifest contradicts itself: another shard, or another sum."""
        stray = [shard.key for shard in self.shards if not shard.is_in(PROMPTS)]
        if stray:
            return f"{stray[0]} is no shard of prompts"
        if not self.shards:
            return "it names no prompts"
        rows = sum(shard.rows for shard in self.shards)
        return None if rows == self.rows else f"its shards have {rows} rows, it says {self.rows}"


class RolloutPlan(Versioned):
    """What a round samples, fixed before the first sample."""

    LATER = frozenset({"schedule", "teacher"})
    run: FileName
    round: Count
    policy_version: Mark
    prompts_fingerprint: Mark
    units: Count
    rows: Count
    sampling: dict[str, Any]
    fingerprint: Mark
    teacher: FileName | None = None
    """Who samples; None for the student."""
    schedule: RoundSchedule | None = None
    """What the round has of its own by `[schedule]`; None where there is none."""

    def flaw(self) -> str | None:
        """Return how the plan contradicts itself: its fingerprint is another plan's."""
        facts = self.model_dump(mode="json", exclude={"fingerprint", "schema_version"})
        found = fingerprint(facts)
        return None if found == self.fingerprint else f"what it plans has the fingerprint {found}"

    def misplaced(self, key: str) -> str | None:
        """Return which round it plans, where its key is another one's."""
        home = plan_key(stage_folder(self.run, self.round, sample_stage(self.teacher)))
        return None if key == home else f"the plan of round {self.round} of run {self.run}"


class FailureRecord(Versioned):
    """Why the last call of a stage that failed did so; nothing reads it but people's views."""

    run: FileName
    round: Count
    stage: Words
    exit_code: Count
    message: str

    def misplaced(self, key: str) -> str | None:
        """Return which stage failed, where the key is another one's."""
        home = failure_key(stage_folder(self.run, self.round, self.stage))
        stage = f"{self.stage} of round {self.round} of run {self.run}"
        return None if key == home else f"the failure of {stage}"


class RolloutManifest(Versioned):
    """All sampled shards of a round."""

    LATER = frozenset({"teacher"})
    run: FileName
    round: Count
    policy_version: Mark
    fingerprint: Mark
    units: tuple[UnitShard, ...]
    rows: Count
    tokens: Count
    teacher: FileName | None = None
    """Who sampled; None for the student."""

    def flaw(self) -> str | None:
        """Return how the manifest contradicts itself: its units or their sums."""
        return flaw_of_units(self.units, folder=ROLLOUTS, rows=self.rows, tokens=self.tokens)

    def misplaced(self, key: str) -> str | None:
        """Return which round it is of, where its key is another one's."""
        home = manifest_key(stage_folder(self.run, self.round, sample_stage(self.teacher)))
        return None if key == home else f"the rollout of round {self.round} of run {self.run}"

    def departs(self, plan: RolloutPlan) -> str | None:
        """Return how the manifest differs from the plan of its round, or None."""
        for name, found, expected in (
            ("fingerprint", self.fingerprint, plan.fingerprint),
            ("policy version", self.policy_version, plan.policy_version),
            ("number of units", len(self.units), plan.units),
            ("number of rows", self.rows, plan.rows),
        ):
            if found != expected:
                return f"its {name} is {found}, planned is {expected}"
        return None


class AdmissionRecord(Versioned):
    """That a model of a run was tried on a few rows, or its engine held, and what it was then."""

    run: FileName
    subject: Label
    """`student`, `teacher/<name>`, or `engine` for one that was held against transformers."""
    seen: dict[str, Any]
    """What the trial stands for: files, engine and versions, settings. Another one is due where
    they are others."""
    fingerprint: Mark
    """Of what was seen."""
    figures: dict[str, Any]
    """What the trial measured."""

    def flaw(self) -> str | None:
        """Return how the record contradicts itself: its fingerprint is of something else."""
        found = fingerprint(self.seen)
        return None if found == self.fingerprint else f"what was seen has the fingerprint {found}"

    def misplaced(self, key: str) -> str | None:
        """Return whose admission it is, where its key is another one's."""
        home = admission_key(self.run, self.subject, self.fingerprint)
        return None if key == home else f"the admission of {self.subject} to run {self.run}"


class TeacherRecord(Versioned):
    """The teacher behind a name of a run, fixed at its first score."""

    model: dict[str, Any]
    tokenizer: Words


class EvalManifest(Versioned):
    """Graded samples and their summary."""

    LATER = frozenset({"samples", "pass_at"})
    run: FileName
    round: Count | None
    subject: Label
    policy_version: Mark
    fingerprint: Mark
    units: tuple[UnitShard, ...]
    rows: Count
    tokens: Count
    accuracy: Real
    standard_error: Real
    stopped: Real
    samples: Count = 1
    """Responses of each prompt."""
    pass_at: dict[Words, Real] = {}
    """k → how often one of k responses of a prompt is right, without bias; empty with one response,
    or where a grade is neither right nor wrong."""

    def flaw(self) -> str | None:
        """Return how the manifest contradicts itself: its units, their sums, or a share."""
        if not 0.0 <= self.stopped <= 1.0:
            return f"a share of {self.stopped} stopped, which is none"
        if stray := [share for share in self.pass_at.values() if not 0.0 <= share <= 1.0]:
            return f"a share of {stray[0]} passed, which is none"
        return flaw_of_units(self.units, folder=ROLLOUTS, rows=self.rows, tokens=self.tokens)

    def misplaced(self, key: str) -> str | None:
        """Return what it graded, where its key is that of something else."""
        if self.round is None:
            home = baseline_folder(self.run, self.subject)
        else:
            home = stage_folder(self.run, self.round, "eval")
        if key == manifest_key(home) and (self.round is None or self.subject == STUDENT):
            return None
        when = "before round 0" if self.round is None else f"after round {self.round}"
        return f"the evaluation of {self.subject} {when} of run {self.run}"
