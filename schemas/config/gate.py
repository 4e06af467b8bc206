"""`[gate]`: when to stop early, at a target or because the student got worse."""

from typing import Annotated

from pydantic import Field

from schemas.config.section import Fraction, Section, tuning

Nats = Annotated[float, Field(gt=0.0, le=1e6)]


class GateSection(Section):
    """`[gate]`: checked after each round; without it a run does all its rounds."""

    target_accuracy: Fraction | None = tuning(None)
    """The run ends after a round whose student reaches this accuracy on the held-out prompts."""
    target_reverse_kl: Nats | None = tuning(None)
    """The run ends after a round in which the reverse KL of the sampling student to its teachers,
    and two standard errors, were at most this, in nats per token."""
    max_accuracy_drop: Fraction | None = tuning(None)
    """The run fails where accuracy falls by more than this: against the last graded round, at first
    against the initial student."""
    max_reverse_kl_rise: Nats | None = tuning(None)
    """The run fails where the reverse KL rises by more than this from one round to the next, and by
    two standard errors more, in nats per token."""
