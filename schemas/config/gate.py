"""`[gate]`: when rounds end early, and when they must not go on."""

from typing import Annotated

from pydantic import Field

from schemas.config.section import Fraction, Section, tuning

Nats = Annotated[float, Field(gt=0.0)]


class GateSection(Section):
    """`[gate]`: looked at after each round; without it a run does all its rounds."""

    target_accuracy: Fraction | None = tuning(None)
    """The run ends after a round whose student reaches this accuracy on the held-out prompts."""
    target_reverse_kl: Nats | None = tuning(None)
    """The run ends after a round whose student, as it sampled, was at most so far from its
    teachers in nats per token."""
    max_accuracy_drop: Fraction | None = tuning(None)
    """The run fails where a round's accuracy is lower by more than this than the last one before
    it, of the student as it came at first."""
    max_reverse_kl_rise: Nats | None = tuning(None)
    """The run fails where a round's reverse KL is higher by more nats per token than that of the
    round before."""
