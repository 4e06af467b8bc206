"""What a stage tells beside the counts that every stage has: further fields of its JSON line."""

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from schemas.errors import DataError


class Figures(Protocol):
    """Figures of one stage."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of the CLI's JSON line, in order."""


@dataclass(frozen=True)
class Noise:
    """How far scores of the same tokens differ, nats of token and top-k log-probabilities."""

    tokens: int
    mean: float
    max: float

    def check(self, tolerance: float, *, where: str) -> None:
        """Make sure that it is no more than rounding.

        Raises:
            DataError: it is more.
        """
        if not self.mean <= tolerance:
            raise DataError(
                f"{where}: the same {self.tokens} tokens, scored alone, together and in another "
                f"order, differ by {self.mean:.3g} nats on average and {self.max:.3g} at most, "
                f"where {tolerance:.3g} on average would pass. Nothing was scored. Look at the "
                "engine's settings and version, or allow it with score.noise_tolerance"
            )


@dataclass(frozen=True)
class ScoreFigures:
    """Figures of one teacher's part of a round."""

    teacher: str
    sibling_rows: dict[str, int]
    """Rows of this call's units that came from other scorers of the same weights, by scorer."""
    noise: Noise | None
    """What the self-test found; None where the teacher was not needed."""
    reverse_kl: float | None
    """Of the whole round; None while units are missing, and where the rollout was tempered or cut:
    then the learner has that of the student."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of the CLI's JSON line, in order."""
        return asdict(self)


@dataclass(frozen=True)
class SampleFigures:
    """Who sampled, where it was not the student."""

    teacher: str

    def fields(self) -> dict[str, Any]:
        """Return the fields of the CLI's JSON line, in order."""
        return asdict(self)


@dataclass(frozen=True)
class RewardFigures:
    """Figures of a graded round."""

    reward: float | None
    """Mean of the rewards."""
    rewarded: int
    """Rows that have one."""
    faults: dict[str, int]
    """Rows that have none, by kind of fault."""
    groups: int
    groups_without_spread: int
    teacher: str | None = None
    """Whose samples were graded; None for the student's."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of the CLI's JSON line, in order."""
        found = asdict(self)
        return found if self.teacher else {k: v for k, v in found.items() if k != "teacher"}


@dataclass(frozen=True)
class TrainFigures:
    """Figures of a trained round."""

    steps: int
    stale_rows: int
    summary: dict[str, float]
    """Means of the steps' metrics, by name."""
    first_rollout_kl: float | None
    """Of the first step, before anything was learnt."""
    checkpoint: str
    """Where the new checkpoint is."""
    data_wait_share: float | None = None
    """For which share of its time this call waited for data; None where it trained nothing."""

    @property
    def loss(self) -> float | None:
        """Mean loss of the steps."""
        return self.summary.get("loss")

    def fields(self) -> dict[str, Any]:
        """Return the fields of the CLI's JSON line, in order; each metric is a field."""
        return {
            "steps": self.steps,
            "stale_rows": self.stale_rows,
            **self.summary,
            "first_rollout_kl": self.first_rollout_kl,
            "checkpoint": self.checkpoint,
            "data_wait_share": self.data_wait_share,
        }


@dataclass(frozen=True)
class Accuracy:
    """How much of an evaluation was right."""

    accuracy: float
    """Mean of the grades: with several samples of a prompt it is avg@n."""
    standard_error: float
    accuracy_low: float = 0.0
    accuracy_high: float = 1.0
    """Ends of its 95 % interval."""
    samples: int = 1
    """Responses of each prompt."""
    pass_at: dict[str, float] = field(default_factory=dict)
    """k → how often one of k responses of a prompt is right."""

    @property
    def words(self) -> str:
        """Return it in words."""
        name = "accuracy" if self.samples == 1 else f"avg@{self.samples}"
        found = f"{name} {in_percent(self.accuracy, self.accuracy_low, self.accuracy_high)}"
        most = str(self.samples)
        return f"{found}, pass@{most} {self.pass_at[most]:.1%}" if most in self.pass_at else found


def in_percent(mean: float, low: float, high: float) -> str:
    """Return an accuracy with the ends of its interval."""
    return f"{mean:.1%} ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True)
class EvalFigures:
    """Figures of an evaluation."""

    subject: str
    """What was graded: `student`, or `teacher/<name>`."""
    found: Accuracy | None
    """None while units are missing."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of the CLI's JSON line, in order."""
        return {"subject": self.subject, **({} if self.found is None else asdict(self.found))}
