"""The forms of an objective that the stored rows of a round allow: which sums, by which ids. Pure.

A form is an objective and what its rows are given of samples; nothing of it is computed here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.learner.sequences import Batch
from schemas.config.loss import POLICY, LossConfig, suited

By = Literal["bucket", "token", "student", "teacher"]
"""What says of single ids outside the support: nothing, the sampled token, a stored sample."""

OTHERS = ("forward_kl", "reverse_kl", "jsd", POLICY)
"""Objectives that every check looks at, beside the configured one."""

WORDS: dict[By, str] = {
    "bucket": "top-k and bucket",
    "token": "top-k and the sampled token",
    "student": "top-k and the student's sample",
    "teacher": "top-k and the teacher's sample",
}


@dataclass(frozen=True)
class Form:
    """An objective over the ids that stored rows hold."""

    loss: LossConfig
    by: By
    configured: bool = False
    """Whether the run trains it."""

    @property
    def name(self) -> str:
        """Return the form in words."""
        if self.loss.kind == POLICY and self.by == "bucket":
            return f"{self.loss.kind}: the sampled token"
        return f"{self.loss.kind}: {WORDS[self.by]}"

    @property
    def unbiased(self) -> bool:
        """Return whether its gradient is expected to be that of all ids, but for cut weights."""
        return self.by != "bucket" or self.loss.kind in (POLICY, "sft")

    @property
    def setting(self) -> str:
        """Return what a run says that trains it."""
        estimator = {"bucket": "bucket", "token": "sampled"}.get(self.by, "auto")
        if self.loss.kind == POLICY and self.by == "bucket":
            estimator = "auto"
        return f"loss.kind = {self.loss.kind!r} and loss.estimator = {estimator!r}"


def forms_of(loss: LossConfig, batches: Mapping[By, Batch], *, truncated: bool) -> tuple[Form, ...]:
    """Return the forms that rows allow, the configured one first.

    Args:
        loss: the objective of the round.
        batches: the rows, without a sample as `bucket`, and with each stored one.
        truncated: whether the rollout cut ids away, of which its draws say nothing.
    """
    mine = Form(loss, configured_by(loss, batches), configured=True)
    if loss.own is not None or loss.kind == "sft" or loss.temperature != 1.0:
        return (mine,)
    found = [mine]
    for kind in dict.fromkeys((loss.kind, *OTHERS)):
        for by in _allowed(kind, loss, batches, truncated=truncated):
            if kind == loss.kind and by == mine.by:
                continue
            found.append(Form(_with(loss, kind, by), by))
    return tuple(found)


def rows_of(form: Form, batches: Mapping[By, Batch]) -> Batch:
    """Return the rows as a form's targets are built from them."""
    return batches["bucket" if form.by == "token" else form.by]


def configured_by(loss: LossConfig, batches: Mapping[By, Batch]) -> By:
    """Return what the learner takes of the rows for an objective."""
    stored = next((of for of in loss.samples if of in batches), None)
    if stored is not None:
        return stored
    return "token" if loss.takes_token else "bucket"


def _allowed(
    kind: str, loss: LossConfig, batches: Mapping[By, Batch], *, truncated: bool
) -> list[By]:
    own = kind == loss.kind
    if own and loss.kind == POLICY and not loss.samples:
        return ["bucket"]  # it is about the sampled token alone
    if kind == POLICY and truncated:
        return ["bucket"] if own else []
    own_values = {"beta": loss.beta, "alpha": loss.alpha} if own else {}
    suits = suited(kind, **own_values)
    if own and loss.estimator != "bucket":
        suits = loss.samples
    drawn = [of for of in suits if not (truncated and of == "student")]
    token: list[By] = ["token"] if "student" in drawn else []
    stored: list[By] = [of for of in drawn if of in batches]
    return ["bucket", *token, *stored]


def _with(loss: LossConfig, kind: str, by: By) -> LossConfig:
    """Return the objective of another form: its keys as configured, or another's defaults."""
    estimator = {"bucket": "bucket", "token": "sampled"}.get(by, "auto")
    if kind == POLICY and by == "bucket":
        estimator = "auto"
    words = {"kind": kind, "estimator": estimator}
    if kind == loss.kind:
        return LossConfig.model_validate({**loss.model_dump(), **words})
    kept = ("importance_cap", "teacher_logprob_floor", "weights")
    return LossConfig.model_validate({**{name: getattr(loss, name) for name in kept}, **words})


def without_sample(batch: Batch) -> Batch:
    """Return rows that hold no sample."""
    return replace(batch, teacher=replace(batch.teacher, sample=None))
