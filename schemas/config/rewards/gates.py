"""`[loss.gate]`: which responses distil, by what is known of answers, and how much, by step."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.config.section import Fraction, Natural, Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]

PassRateKind = Literal["hard", "middle", "easy"]


class LossGate(Section):
    """`[loss.gate]`: where distillation counts, and how much; rewards count anyway.

    The weights of a response multiply.
    """

    teacher: Literal["any", "eval", "samples"] = "any"
    """`eval`, `samples`: distil only prompts on which the teacher itself was right, as its
    evaluation (`eval.teachers`) or its graded samples (`opd rollout --teacher`) say."""
    teacher_rate: Fraction = 0.5
    """Share of right answers with which a teacher counts as right on a prompt."""
    student: Literal["any", "wrong", "right"] = "any"
    """`wrong`: distil only responses that were wrong, by `[reward]`; `right`: only right ones."""
    pass_rate: Literal["any", PassRateKind] = "any"
    """Weigh a response by the share p of right ones among its prompt's: `hard` by 1 − p, `easy` by
    p, `middle` by 4p(1 − p)."""
    right: Annotated[float, Field(ge=-1e30, le=1e30)] = 1.0
    """Least reward of a right answer."""
    unknown: Share = 1.0
    """Weight where something is not known: a response without reward, a prompt that the teacher
    has not answered."""
    warmup_steps: Natural = 0
    """Distillation grows from 0 to its weight in so many optimizer steps of the run."""
    anneal_from: Natural = 0
    """Optimizer step of the run at which distillation begins to shrink."""
    anneal_steps: Natural = 0
    """Optimizer steps in which it shrinks to `anneal_to`; 0: it does not."""
    anneal_to: Share = 0.0
    """Share of its weight that stays of distillation."""
    compress_nats: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """`policy_gradient` only: an advantage A of many nats becomes ± c·log(1 + |A|/c) with this c;
    small ones stay."""

    @model_validator(mode="after")
    def _check(self) -> "LossGate":
        if not self.anneal_steps and (self.anneal_from or self.anneal_to):
            raise ValueError("anneal_from and anneal_to need anneal_steps, in which it happens")
        return self

    @property
    def of_student(self) -> bool:
        """Return whether rewards of the student's responses are asked for."""
        return self.student != "any" or self.pass_rate != "any"

    @property
    def of_rows(self) -> bool:
        """Return whether responses differ in how much they distil."""
        return self.of_student or self.teacher != "any"

    def factor(self, step: int) -> float:
        """Return the share of its weight that distillation has at an optimizer step, from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if not self.anneal_steps:
            return warm
        done = min(1.0, max(0, step - self.anneal_from) / self.anneal_steps)
        return warm * (1.0 - (1.0 - self.anneal_to) * done)
