"""What a check of an objective has found, and the best choice in words. Pure."""

import math
from dataclasses import dataclass
from typing import Any

from pipeline.learner.objective.forms import Form
from pipeline.objectives.check.moments import Worth

_BETTER = 0.02
"""Least gain of a cosine that a thousand positions tell, and that is worth another run."""

_MEASURED = 0.005
"""The same where it was measured against all ids at the same positions."""


@dataclass(frozen=True)
class FormFigures:
    """What a form of the objective is worth on the rows."""

    form: Form
    reference: str | None
    """The form whose mean is taken for right; None where this one's is all there is."""
    worth: Worth
    cosine: float | None
    """Expected cosine of a step's gradient with the reference's mean."""
    fused_error: float
    mass_score: float | None
    of_all_ids: float | None = None
    """Expected cosine of a step's gradient with that over all ids of the same tokens; None without
    a teacher at hand."""

    @property
    def merit(self) -> float | None:
        """Return what forms are compared by: what was measured of all ids, else `cosine`."""
        return self.cosine if self.of_all_ids is None else self.of_all_ids

    def fields(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "form": self.form.name,
            "configured": self.form.configured,
            "unbiased": self.form.unbiased,
            "reference": self.reference,
            "bias": self.worth.bias if self.reference else None,
            "bias_seen": self.worth.bias_seen if self.reference else None,
            "variance": self.worth.variance,
            "noise_positions": self.worth.noise,
            "cosine": self.cosine,
            "cosine_of_all_ids": self.of_all_ids,
            "fused_error": self.fused_error,
            "mass_score": self.mass_score,
        }


@dataclass(frozen=True)
class Checked:
    """What was found of a round's objective."""

    round: int
    rows: int
    positions: int
    step_tokens: int
    """Trained tokens of an optimizer step, as these rows are long."""
    forms: tuple[FormFigures, ...]
    """The configured one first."""


def best_of(found: Checked) -> FormFigures | None:
    """Return the form of the configured objective with the best cosine, None where none is known.

    The configured one is kept unless another is better by more than these positions tell.
    """
    mine = found.forms[0]
    known = [
        one
        for one in found.forms
        if one.form.loss.kind == mine.form.loss.kind and one.merit is not None
    ]
    if mine.merit is None or not known:
        return None
    best = max(known, key=lambda one: -math.inf if one.merit is None else one.merit)
    least = _BETTER if mine.of_all_ids is None else _MEASURED
    return best if (best.merit or 0.0) - mine.merit > least else mine


def advice(found: Checked) -> str:
    """Return the best choice in words."""
    mine, best = found.forms[0], best_of(found)
    against = "" if mine.of_all_ids is None else " with the gradient over all ids"
    steps = f"in a step of {found.step_tokens:,} tokens{against}"
    if best is None:
        return (
            f"{found.positions:,} positions do not tell the mean of the gradient from its noise, "
            "which is usual for a student that is near its teacher: no form is told to be better"
        )
    if best is not mine:
        return (
            f"{best.form.name} is better: its expected cosine {steps} is {best.merit:.3f}, that "
            f"of the configured form {mine.merit:.3f}{_bias_words(best)}. Under another run.name, "
            f"set {best.form.setting}"
        )
    return (
        f"keep {mine.form.name}; its expected cosine {steps} is {mine.merit:.3f}{_bias_words(mine)}"
    )


def _bias_words(one: FormFigures) -> str:
    """Return what is to be known of a form's bias, nothing where there is none to tell."""
    if one.worth.bias and one.reference is not None:
        return f", with a bias of {one.worth.bias:.0%}, which no number of tokens mends"
    if one.reference is not None or one.form.unbiased:
        return ""
    drawn = one.form.loss.kind in ("forward_kl", "skew_kl") and one.form.loss.temperature == 1.0
    hint = ": score.sample = 16 would" if drawn else ""
    return f", beside its bias, which these rows do not tell{hint}"
