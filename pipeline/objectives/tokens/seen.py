"""What a student says of whole responses, seen without a gradient, and what follows for each token.

Promises: a response's tokens depend on each other alone, so that it says the same in any batch.
Shapes: T tokens.
"""

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from pipeline.objectives.sides import Sides
from pipeline.objectives.targets import Plan, Targets
from pipeline.objectives.tokens.policy import response_signal
from schemas.config.loss import LossConfig


class Seen(NamedTuple):
    """What is seen of the student at each position; constants."""

    token_logprob_T: Tensor


def look(sides: Sides, loss: LossConfig) -> Seen:
    """Return what the student says of some positions."""
    return Seen(sides.student_token_logprob_T.detach())


def no_look(targets: Targets) -> Seen:
    """Return what is seen where nobody has looked: zeros, to be filled."""
    return Seen(*(targets.token_logprob_T.new_zeros(len(targets)) for _ in Seen._fields))


def planned(targets: Targets, seen: Seen, loss: LossConfig) -> Targets:
    """Return targets with what the objective takes from whole responses."""
    plan = Plan()
    if loss.of_responses:
        signal = response_signal(seen.token_logprob_T, targets, loss)
        plan = replace(plan, **signal._asdict())
    return replace(targets, plan=plan)
