"""After a round: go on, stop because the target is reached, or fail because the student got worse.

Promises: no difference of reverse KLs within their errors decides. A pure function of the manifests
of the round and of the one before, and of `[gate]`: nothing is stored, and each caller finds the
same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.runs.run import Run
from schemas.config.gate import GateSection
from schemas.errors import ConfigError, RegressionError
from schemas.keys import STUDENT
from schemas.records.scores import ScoreManifest
from schemas.records.training import TrainManifest

SURE = 2.0
"""Standard errors that a difference has to exceed before it decides."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a run after a round."""

    decision: Literal["go", "stop"]
    reason: str
    accuracy: float | None
    """Of the student that the round trained; None where it was not graded."""
    reverse_kl: float | None
    """Of the student that sampled in the round, nats per token."""
    reverse_kl_error: float | None
    """Its standard error; None where it is not known."""


@dataclass(frozen=True)
class Gap:
    """The reverse KL of a student to its teachers, nats per token, and its standard error."""

    value: float
    error: float | None = None

    @property
    def most(self) -> float:
        """Return the most it may be, within its error."""
        return self.value + SURE * (self.error or 0.0)


def judge(run: Run, round_index: int) -> Verdict:
    """Return whether a run goes on after a round.

    Raises:
        ConfigError: the round is not trained yet.
        RegressionError: the student got worse by more than `[gate]` allows.
    """
    if run.train(round_index) is None:
        raise ConfigError(
            f"round {round_index} is not trained, so there is nothing to judge: run "
            f"`opd train --round {round_index}` first"
        )
    gate = run.config.gate or GateSection()
    accuracy, gap = accuracy_of(run, round_index), reverse_kl_of(run, round_index)
    told = f"round {round_index}:{_shown(accuracy, gap)}"
    if gate.max_accuracy_drop is not None and accuracy is not None:
        before = _accuracy_before(run, round_index)
        if before is not None and accuracy < before - gate.max_accuracy_drop:
            raise RegressionError(
                f"{told}, down from {before:.1%}: more than gate.max_accuracy_drop = "
                f"{gate.max_accuracy_drop:g}. {_way_out(run, round_index)}"
            )
    if gate.max_reverse_kl_rise is not None and gap is not None and round_index:
        last = reverse_kl_of(run, round_index - 1)
        if last is not None and _rise(gap, last) > gate.max_reverse_kl_rise:
            raise RegressionError(
                f"{told}, up from {_nats(last)}: more than gate.max_reverse_kl_rise = "
                f"{gate.max_reverse_kl_rise:g}. {_way_out(run, round_index)}"
            )
    known = (None, None) if gap is None else (gap.value, gap.error)
    if reached := _reached(gate, accuracy, gap):
        return Verdict("stop", f"{told}; {reached} is reached", accuracy, *known)
    return Verdict("go", told, accuracy, *known)


def accuracy_of(run: Run, round_index: int) -> float | None:
    """Return the accuracy of the student that a round trained, or None where it is not graded."""
    graded = run.evaluation(round_index)
    return None if graded is None else graded.accuracy


def reverse_kl_of(run: Run, round_index: int) -> Gap | None:
    """Return the reverse KL of the student that sampled in a round, nats per token."""
    scores = [run.score(round_index, name) for name in run.config.teachers]
    return measured_gap(run, round_index, scores)


def measured_gap(run: Run, round_index: int, scores: Sequence[ScoreManifest | None]) -> Gap | None:
    """Return the reverse KL of the student that sampled in a round, nats per token.

    What was drawn from a tempered or truncated rollout says it of another distribution than the
    student's; there the learner has weighed it, once the round is trained.

    Args:
        run: the run.
        round_index: the round.
        scores: by its teachers.
    """
    if run.config.rollout.is_whole:
        return mean_reverse_kl(scores)
    trained = run.train(round_index)
    return None if trained is None else known_gap(scores, trained)


def known_gap(scores: Sequence[ScoreManifest | None], trained: TrainManifest | None) -> Gap | None:
    """Return what a round's learner says of the student that sampled, else what its scores say.

    The learner does where the rollout was tempered or cut, unless an older opd has trained.
    """
    if trained is None or trained.reverse_kl is None:
        return mean_reverse_kl(scores)
    return Gap(trained.reverse_kl, trained.reverse_kl_error)


def mean_reverse_kl(scores: Sequence[ScoreManifest | None]) -> Gap | None:
    """Return the mean reverse KL over the teachers of a round, weighted by tokens."""
    known = [s for s in scores if s is not None and s.reverse_kl is not None]
    tokens = sum(s.tokens for s in known)
    if not tokens:
        return None
    value = sum((s.reverse_kl or 0.0) * s.tokens for s in known) / tokens
    errors = [s.reverse_kl_error for s in known]
    if None in errors:
        return Gap(value)
    parts = ((e or 0.0) * s.tokens / tokens for e, s in zip(errors, known, strict=True))
    return Gap(value, math.hypot(*parts))


def _rise(now: Gap, before: Gap) -> float:
    """Return by how much a reverse KL has risen for sure."""
    error = math.hypot(now.error or 0.0, before.error or 0.0)
    return now.value - before.value - SURE * error


def _reached(gate: GateSection, accuracy: float | None, gap: Gap | None) -> str | None:
    target, limit = gate.target_accuracy, gate.target_reverse_kl
    if target is not None and accuracy is not None and accuracy >= target:
        return f"gate.target_accuracy = {target:g}"
    if limit is not None and gap is not None and gap.most <= limit:
        return f"gate.target_reverse_kl = {limit:g}"
    return None


def _accuracy_before(run: Run, round_index: int) -> float | None:
    """Return the last accuracy before a round's, at most `eval.every_rounds` back."""
    section = run.config.eval
    reach = section.every_rounds if section is not None else 0
    for index in range(round_index - 1, max(-1, round_index - 1 - reach), -1):
        if (found := accuracy_of(run, index)) is not None:
            return found
    initial = run.baseline(STUDENT)
    return None if initial is None else initial.accuracy


def _nats(gap: Gap) -> str:
    error = "" if gap.error is None else f" ± {gap.error:.4f}"
    return f"{gap.value:.4f}{error} nats"


def _shown(accuracy: float | None, gap: Gap | None) -> str:
    known = [] if accuracy is None else [f" accuracy {accuracy:.1%}"]
    known += [] if gap is None else [f" reverse KL {_nats(gap)}"]
    return ",".join(known) or " nothing measured"


def _way_out(run: Run, round_index: int) -> str:
    return (
        f"Look at `opd status`. To go on all the same, raise the limit; to try again from the "
        f"student before, give a run.name of its own and as student.model a copy of "
        f"{run.storage.url(run.checkpoint_folder(round_index))}"
    )
