"""The figures that a report can show: their names, titles, units and meanings, as data.

A figure that is not stored is told as such, by these words. Pure.
"""

from dataclasses import dataclass
from typing import Literal

Form = Literal["share", "nats", "number", "count", "seconds", "bytes", "tiny"]
"""How values are written."""


@dataclass(frozen=True)
class Series:
    """One line of a chart: a column of the frame of rounds or of steps."""

    name: str
    label: str
    low: str | None = None
    """Column of an interval's lower end."""
    high: str | None = None


@dataclass(frozen=True)
class Figure:
    """What one chart shows."""

    title: str
    meaning: str
    form: Form
    series: tuple[Series, ...]
    kind: Literal["line", "stack", "cost"] = "line"
    log: bool = False
    """Whether values of very different sizes are told apart best on a logarithmic axis."""
    still: float | None = None
    """Value that says nothing: what never has another one is not drawn."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that it needs."""
        return tuple(one.name for one in self.series)


@dataclass(frozen=True)
class Group:
    """Charts under one heading."""

    title: str
    words: str
    figures: tuple[Figure, ...]
    by: Literal["round", "step"] = "round"


def _one(title: str, name: str, form: Form, meaning: str, *, log: bool = False) -> Figure:
    return Figure(title, meaning, form, (Series(name, title),), log=log)


QUALITY = Group(
    "How far it came",
    "One point a round. Accuracy is of the student that the round trained; distances are of the "
    "student that sampled in it.",
    (
        Figure(
            "Accuracy",
            "Share of held-out responses that the grader calls right, with its 95 % interval.",
            "share",
            (Series("accuracy", "student", "accuracy_low", "accuracy_high"),),
        ),
        _one(
            "Reverse KL",
            "reverse_kl",
            "nats",
            "Mean of log q − log p over sampled tokens: how far the student is from its teacher "
            "where the student goes.",
        ),
        _one(
            "Forward KL",
            "forward_kl",
            "nats",
            "KL(teacher ‖ student) over what was kept of the teacher, mean of the round's steps.",
        ),
        _one("Reward", "reward", "number", "Mean reward of the responses that were trained on."),
        Figure(
            "Accuracy by teacher tokens",
            "Quality beside cost: what the teacher had read by then.",
            "share",
            (Series("accuracy", "student", "accuracy_low", "accuracy_high"),),
            kind="cost",
        ),
        Figure(
            "Reverse KL by teacher tokens",
            "The same for the distance to the teacher.",
            "nats",
            (Series("reverse_kl", "student"),),
            kind="cost",
        ),
    ),
)

SHAPE = Group(
    "What the student writes",
    "Lengths, certainty, and how much of both distributions the stored ids cover. Quantiles, the "
    "share cut off, the teacher's entropy, sampled tokens and overlap are those of the sequences "
    "that were read.",
    (
        Figure(
            "Response length",
            "Tokens of a response: mean of all, and quantiles of the rows that were read.",
            "number",
            (
                Series("response_tokens", "mean"),
                Series("length_median", "median"),
                Series("length_90", "90 %"),
            ),
        ),
        _one(
            "Cut off", "cut_off", "share", "Responses that ended at the limit, not by themselves."
        ),
        Figure(
            "Entropy",
            "Of the whole distribution at each token: the student's as it trains, the teacher's as "
            "it was scored.",
            "nats",
            (Series("student_entropy", "student"), Series("teacher_entropy", "teacher")),
        ),
        Figure(
            "Mass on the support",
            "Probability that both give to the ids which are kept of the teacher.",
            "share",
            (Series("student_mass", "student"), Series("teacher_mass", "teacher")),
        ),
        Figure(
            "Sampled token known to the teacher",
            "Sampled tokens that are the teacher's first choice, and among its top-k.",
            "share",
            (Series("sampled_first", "first choice"), Series("sampled_in_topk", "in top-k")),
        ),
        _one(
            "Overlap of top ids",
            "overlap",
            "share",
            "Share of the student's own top ids (rollout.candidates) that are in the teacher's "
            "top-k.",
        ),
        _one(
            "Rollout KL",
            "rollout_kl",
            "tiny",
            "KL of what the rollout drew from to the learner before its first step: what their "
            "engines disagree by.",
            log=True,
        ),
        Figure(
            "Clipped or floored",
            "Tokens whose teacher log-probability was floored, whose tail was clamped, and whose "
            "importance weight was cut.",
            "share",
            (
                Series("floored", "floored"),
                Series("tail_clamped", "tail clamped"),
                Series("importance_cut", "importance cut"),
            ),
        ),
    ),
)

COST = Group(
    "What it cost",
    "Times are those of all calls of a stage, added up. Bytes of a shard with reused rows are "
    "shared out by rows.",
    (
        Figure(
            "Teacher tokens",
            "Prompt and response tokens that a teacher read for the round.",
            "count",
            (Series("teacher_tokens", "paid"),),
            kind="stack",
        ),
        Figure(
            "Scored rows",
            "Sequences that the teacher read, and those whose scores were in the cache.",
            "count",
            (Series("paid_rows", "paid"), Series("reused_rows", "reused")),
            kind="stack",
        ),
        Figure(
            "Bytes of scores",
            "Score shards that the round uses.",
            "bytes",
            (Series("paid_bytes", "paid"), Series("reused_bytes", "reused")),
            kind="stack",
        ),
        Figure(
            "Seconds by stage",
            "Time of all calls, added up over workers.",
            "seconds",
            tuple(
                Series(f"seconds_{stage}", stage)
                for stage in ("rollout", "grade", "score", "train", "eval")
            ),
            kind="stack",
        ),
        Figure(
            "Tokens per second",
            "Response tokens of a stage by its seconds, start of the engine included.",
            "number",
            tuple(
                Series(f"rate_{stage}", stage) for stage in ("rollout", "score", "train", "eval")
            ),
            log=True,
        ),
        _one(
            "Waiting for data",
            "data_wait_share",
            "share",
            "Share of its time for which the learner waited for its input.",
        ),
        _one(
            "Padding",
            "padding",
            "share",
            "Share of the learner's positions that held no token.",
        ),
    ),
)

LEARNING = Group(
    "Step by step",
    "One point an optimizer step; where there are very many, means of neighbours with their range.",
    (
        _one("Loss", "loss", "number", "What was trained on, nats per token."),
        _one("Gradient norm", "grad_norm", "number", "Before it is clipped.", log=True),
        _one("Learning rate", "learning_rate", "tiny", "As the schedule gives it."),
        Figure(
            "Distances",
            "Divergences over what was kept of the teacher.",
            "nats",
            (
                Series("forward_kl", "forward KL"),
                Series("reverse_kl", "reverse KL"),
                Series("sampled_reverse_kl", "reverse KL, sampled"),
            ),
        ),
        _one("Entropy of the student", "student_entropy", "nats", "Of its whole distribution."),
        Figure(
            "Mass on the support",
            "Probability that both give to the ids which are kept of the teacher.",
            "share",
            (Series("student_mass", "student"), Series("teacher_mass", "teacher")),
        ),
        _one(
            "Rollout KL",
            "rollout_kl",
            "tiny",
            "Of the samples to the student at this step: it grows while a round trains.",
            log=True,
        ),
        _one(
            "Log-probability of the sampled tokens",
            "student_token_logprob",
            "number",
            "With the student as it is at this step.",
        ),
        Figure(
            "Tokens that count",
            "Share of tokens with a weight by [loss.weights], their mean weight, and the mean "
            "weight that [loss.gate] leaves of distillation.",
            "number",
            (
                Series("token_kept", "kept"),
                Series("token_weight", "weight"),
                Series("distilled", "distilled"),
            ),
            still=1.0,
        ),
        Figure(
            "Stopped by a limit",
            "Tokens whose ratio a clip stopped, that of rewards or that of [loss.policy], whose "
            "divergence was clipped, and that [loss.gate] keeps from distillation.",
            "share",
            (
                Series("ratio_clipped", "rewards' clip"),
                Series("policy_clipped", "policy's clip"),
                Series("divergence_clipped", "divergence's clip"),
                Series("gate_shut", "gate shut"),
            ),
            still=0.0,
        ),
    ),
    by="step",
)

GROUPS = (QUALITY, SHAPE, COST, LEARNING)
