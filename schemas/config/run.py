"""The configuration of a run: one TOML file becomes one frozen `RunConfig`.

Owns every key, its unit, its default and its checks. Unknown keys are refused. Keys that change
results have no default, but for what is kept of a token, which follows from the loss (`score.py`).
Fields made with `tuning` affect speed or place only, never results.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from schemas.config.evaluation import EvalSection, RewardSection
from schemas.config.gate import GateSection
from schemas.config.loss import LossConfig
from schemas.config.models import StudentSection, TeacherSection
from schemas.config.prompts import PromptsSection
from schemas.config.rollout import RolloutSection
from schemas.config.rounds.schedule import ScheduleSection
from schemas.config.score import ScoreSection, with_kept
from schemas.config.section import Name, Place, Section, later, tuning
from schemas.config.storage import StorageSection
from schemas.config.tracking.track import TrackSection
from schemas.config.train import TrainSection
from schemas.scoresignal import Signal, signal_for

MAX_ROUNDS = 1_000_000
"""Most rounds of a run."""


class RunSection(Section):
    """`[run]`: what this run is called, where it lives and how many rounds it has."""

    name: Name
    """Name of the run; its objects live under `runs/<name>/` of the root."""
    root: Place = tuning(...)
    """Folder or URL of the store: a path, `file://…` or `s3://bucket/prefix`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """Seed of every random choice: prompt order, samples, batch order."""
    rounds: Annotated[int, Field(gt=0, le=MAX_ROUNDS)] = tuning(...)
    """Rounds of rollout, score and train in total; may be raised later."""
    admission: Literal["full", "static"] = tuning("full")
    """What a new run is looked at by before anything is pinned. `full`: also load the student, and
    for `opd run` each teacher, and try a few rows. `static`: files and settings alone."""
    keep_models: bool | None = tuning(None)
    """Keep teachers and learner loaded from stage to stage of `opd run`, which loads them once
    then, and holds their memory while others work. Default: where both compute on a CPU."""


class RunConfig(Section):
    """Everything that defines a run."""

    run: RunSection
    """Name, root, seed and rounds."""
    student: StudentSection
    """The model that learns."""
    teachers: Annotated[dict[Name, TeacherSection], Field(min_length=1)]
    """The models that score, by name; a prompt's `teacher` column picks one."""
    prompts: PromptsSection
    """Where prompts come from."""
    rollout: RolloutSection
    """How the student samples."""
    score: ScoreSection
    """What is kept of the teacher."""
    loss: LossConfig
    """The objective."""
    train: TrainSection
    """The learner."""
    eval: EvalSection | None = None
    """Grading of held-out prompts; without it nothing is graded."""
    reward: RewardSection | None = tuning(None)
    """Rewards of the responses that are trained on; without it there are none."""
    schedule: ScheduleSection | None = later(None)
    """What changes from round to round; without it nothing does."""
    gate: GateSection | None = tuning(None)
    """When to stop early: at a target, or because the student got worse."""
    track: TrackSection | None = tuning(None)
    """Who is told of the run; without it nobody is."""
    storage: StorageSection = Field(default_factory=StorageSection)
    """Retries, time-outs and S3 options of the store."""

    @model_validator(mode="before")
    @classmethod
    def _keep(cls, tree: Any) -> Any:
        return with_kept(tree)

    @property
    def default_teacher(self) -> str:
        """Name of the teacher for prompts that name none: the first in the file."""
        return next(iter(self.teachers))

    @property
    def is_supervised(self) -> bool:
        """Whether a round learns what its teacher samples: the student samples nothing to learn."""
        return self.loss.kind == "sft"

    @property
    def answering(self) -> list[str]:
        """Names of the teachers whose graded samples a round waits for."""
        gate = self.loss.gate
        return list(self.teachers) if gate is not None and gate.teacher == "samples" else []

    @property
    def objective(self) -> LossConfig:
        """The objective as it can be had of this rollout.

        What is drawn from a truncated distribution says nothing of the ids that were cut away.
        """
        loss = self.loss
        if self._is_truncated and "student" in loss.samples and loss.estimator == "auto":
            return loss.model_copy(update={"estimator": "bucket"})
        return loss

    def objective_with(self, values: Mapping[str, float]) -> LossConfig:
        """Return the objective with some values of `[loss]` in the place of its own.

        Raises:
            ValueError: they cannot be.
        """
        loss = LossConfig.model_validate({**self.loss.model_dump(), **values})
        return self.model_copy(update={"loss": loss}).objective if values else self.objective

    @property
    def _is_truncated(self) -> bool:
        return self.rollout.top_p < 1.0 or self.rollout.top_k > 0

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        truncated = self._is_truncated
        weighted = self.loss.kind == "policy_gradient" and self.loss.importance != "none"
        if weighted and truncated:
            raise ValueError(
                "importance weights need an untruncated rollout: set rollout.top_p = 1.0 and "
                "rollout.top_k = 0, or loss.importance = 'none'"
            )
        if self.loss.estimator == "sampled" and "student" in self.loss.samples and truncated:
            raise ValueError(
                "loss.estimator = 'sampled' needs an untruncated rollout: set rollout.top_p = 1.0 "
                "and rollout.top_k = 0, or loss.estimator = 'bucket'"
            )
        if self.loss.rl_weight and self.reward is None:
            raise ValueError("loss.rl_weight needs a [reward], which says how responses are graded")
        if self.loss.rl_weight and truncated:
            raise ValueError(
                "loss.rl_weight weights by current over sampling probability: set "
                "rollout.top_p = 1.0 and rollout.top_k = 0"
            )
        self._check_gate()
        if self.loss.kind == "policy_gradient" and not weighted and self.rollout.temperature != 1.0:
            raise ValueError(
                "policy_gradient with importance = 'none' takes samples for the student's own "
                "distribution: set rollout.temperature = 1.0, or loss.importance = 'token'"
            )
        if self.eval is not None and self.prompts.eval is None:
            raise ValueError("[eval] needs prompts.eval, a file of held-out prompts")
        graded = self.gate and (self.gate.target_accuracy or self.gate.max_accuracy_drop)
        if graded and self.eval is None:
            raise ValueError("[gate] waits for an accuracy, which needs an [eval]")
        if self.loss.kind == "sft" and len(self.teachers) > 1:
            raise ValueError("loss.kind = 'sft' learns from one teacher: leave one in [teachers]")
        self._check_temperature(self.loss)
        self._check_schedule()
        self._check_kept()
        self._check_servers()
        known = self.student.sft_teacher
        if known is not None and known not in self.teachers:
            raise ValueError(f"student.sft_teacher = {known!r} is not one of {list(self.teachers)}")
        return self

    def _check_gate(self) -> None:
        gate = self.loss.gate
        if gate is None:
            return
        if (gate.of_student or gate.teacher == "samples") and self.reward is None:
            raise ValueError("loss.gate needs a [reward], which says what answers are right")
        if gate.teacher == "eval" and not (self.eval and self.eval.teachers):
            raise ValueError(
                "loss.gate.teacher = 'eval' needs an [eval] with teachers = true, whose prompts "
                "are those to train on; or say 'samples'"
            )

    def _check_schedule(self) -> None:
        """Make sure that each round's configuration is one that might have been written."""
        if self.schedule is None:
            return
        drawn = {"teacher": self.schedule.teacher, "prompts": self.schedule.prompts}
        given = [key for key, value in drawn.items() if value is not None]
        if self.is_supervised and given:
            raise ValueError(
                f"schedule.{given[0]} is about what the student samples and a teacher scores, and "
                "with loss.kind = 'sft' it samples nothing to learn: take it out"
            )
        unknown = [name for _, name in self.schedule.teacher or () if name not in self.teachers]
        if unknown:
            raise ValueError(
                f"schedule.teacher names {unknown[0]!r}, which is not one of {list(self.teachers)}"
            )
        prompts = self.schedule.prompts
        hard = None if prompts is None else prompts.hard_teacher
        if hard is not None and hard not in self.teachers:
            raise ValueError(
                f"schedule.prompts.hard_teacher is {hard!r}, which is not one of "
                f"{list(self.teachers)}"
            )
        if prompts is not None and prompts.by == "reward" and self.reward is None:
            raise ValueError(
                "schedule.prompts.by = 'reward' needs a [reward], which says how responses are "
                "graded"
            )
        whole = self.model_dump()
        for turn in self.schedule.turns:
            loss = {**whole["loss"], **self.schedule.loss_at(turn)}
            try:
                type(self).model_validate({**whole, "loss": loss, "schedule": None})
            except ValidationError as error:
                words = error.errors()[0]["msg"].removeprefix("Value error, ")
                where = ".".join(str(part) for part in error.errors()[0]["loc"])
                told = f"{where}: {words}" if where else words
                raise ValueError(f"[schedule.loss] at round {turn}: {told}") from None

    def _check_temperature(self, loss: LossConfig) -> None:
        if loss.temperature == 1.0:
            return
        if loss.temperature > 1.0 and loss.temperature not in self.score.temperatures:
            raise ValueError(
                f"loss.temperature = {loss.temperature:g} needs the teacher's log Z at this "
                f"temperature: add it to score.temperatures (found "
                f"{list(self.score.temperatures)}); what is scored without it is scored again"
            )
        if not self.score.k:
            raise ValueError("loss.temperature tempers a top-k and its tail: set score.k above 0")

    def _check_kept(self) -> None:
        if not (self.score.k or self.score.sample or self.rollout.sample):
            raise ValueError(
                "score.k = 0 keeps none of the teacher's ids: set score.sample or rollout.sample, "
                "which stand in the place of a top-k, or score.k above 0"
            )

    def _check_servers(self) -> None:
        own = [name for name in ("candidates", "sample") if getattr(self.rollout, name)]
        if self.score.engine == "server" and own:
            raise ValueError(
                f"rollout.{own[0]} is scored from full logits, which no server gives: set "
                "score.engine to 'vllm' or 'hf'"
            )
        if self.score.engine == "server" and not self.score.k:
            raise ValueError("a server gives a top-k and nothing else: set score.k above 0")
        if self.rollout.engine == "server" and self.rollout.sample:
            raise ValueError(
                "rollout.sample needs the whole distribution at each position, which no server "
                "gives: set rollout.engine to 'vllm' or 'hf'"
            )
        for name, section in (("rollout", self.rollout), ("eval", self.eval)):
            asked = section is not None and section.engine == "server" and section.server.urls
            if section is not None and asked and "{policy}" not in (section.server.model or ""):
                raise ValueError(
                    f"{name}.server.urls needs {name}.server.model with {{policy}} in it: the "
                    "student changes in every round, and the name says which one a server holds"
                )


def signal_of(config: RunConfig) -> Signal:
    """Return what a run's teachers keep of each position, as far as their engine has it."""
    section = config.score
    keys = {field.name for field in fields(Signal)} & set(ScoreSection.model_fields)
    asked = {name: getattr(section, name) for name in keys}
    asked["candidates"] = config.rollout.candidates + config.rollout.most_sampled
    asked["uneven"] = config.rollout.sample_most > 0
    asked["top_p"] = None if section.top_p == 1.0 else section.top_p
    return signal_for(section.engine, Signal(**asked))


def usual_signal_of(config: RunConfig) -> Signal:
    """Return that signal with as many ids as positions have on average, for forecasts."""
    signal, own = signal_of(config), config.rollout
    return replace(signal, candidates=own.candidates + own.sample) if signal.uneven else signal
