"""The figures that alarms are judged from, of one round, each with its standard error. Pure.

A figure that is not stored is left out; so is one that means nothing with the run's settings.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.runs.alarms.seen import Seen, Steps
from pipeline.runs.gate import Gap, known_gap, mean_reverse_kl
from schemas.config.objective.weights import WeightsSection
from schemas.records.scores import TokenLooks


class Value(NamedTuple):
    """A figure of a round."""

    mean: float
    error: float = 0.0
    """Standard error: an alarm is raised only beyond it."""
    step: int | None = None
    """Optimizer step at which it was seen, where it is one step's."""


Named = Iterator[tuple[str, Value]]

SPREAD = 1.0
"""Nats by which log-probabilities of tokens scatter about their mean, as errors assume."""

UNUSUAL, OF_MEDIAN = 5.0, 1.4826
"""Standard deviations of log norms that make a spike; how many a median of distances stands for."""

LEAST_STEPS = 5
"""Steps of which a median can be told."""

SAME_OPENING = 0.9
"""Share of responses that the teacher would begin with one token where the prompt does not matter.
"""

LONG_PROMPT = 24
"""Tokens of a longest prompt below which equal lengths are nothing strange."""


OF_A_TEACHER = frozenset({"end_gap", "opening_gap", "gap", "in_place", "overlap"})
"""Figures that a fault of one teacher moves, whatever the others say."""


def figures_of(seen: Seen) -> dict[str, Value]:
    """Return the figures of a round by name."""
    found = {name: value for part in PARTS for name, value in part(seen)}
    return {name: value for name, value in found.items() if math.isfinite(value.mean)}


def figures_of_teacher(seen: Seen, teacher: str) -> dict[str, Value]:
    """Return the figures of a round that one of several teachers alone is behind."""
    scores = tuple(one for one in seen.scores if one.teacher == teacher)
    found = figures_of(replace(seen, scores=scores, rollout=None, train=None, steps=None))
    return {name: value for name, value in found.items() if name in OF_A_TEACHER}


def _share(part: float, whole: float) -> Value:
    """Return a share of independent rows with an error that is never 0."""
    mean = part / whole
    smooth = (part + 1.0) / (whole + 2.0)
    return Value(mean, math.sqrt(smooth * (1.0 - smooth) / whole))


def _sampled(seen: Seen) -> Named:
    rolled = seen.rollout
    if rolled is None or not rolled.rows:
        return
    mean = rolled.tokens / rolled.rows
    looks = seen.looks
    if looks is None or looks.prompts < 2 or looks.rows < rolled.rows:
        yield "response_tokens", Value(mean, mean / math.sqrt(rolled.rows))
        return
    spread = looks.prompt_squares / looks.prompts - (looks.tokens / looks.prompts) ** 2
    error = math.sqrt(max(spread, 0.0) / (looks.prompts - 1)) * looks.prompts / looks.rows
    yield "response_tokens", Value(mean, error)


def _scored(seen: Seen) -> Named:
    if (gap := _distance(seen)) is not None:
        yield "reverse_kl", Value(gap.value, gap.error or 0.0)
    looks = seen.looks
    if looks is None or not looks.tokens or not looks.rows:
        return
    if seen.rollout is not None and looks.rows >= seen.rollout.rows:
        yield "cut_off", _share(looks.rows - looks.ended, looks.rows)
    root = math.sqrt(looks.gap_squares / looks.tokens)
    if seen.config.rollout.is_whole and looks.teacher < 0.0:
        error = root * math.sqrt(looks.tokens) / -looks.teacher
        yield "entropy_share", Value(looks.student / looks.teacher, error)
    yield from _gaps(looks)
    yield from _kept(looks, seen)
    pulls = list(looks.domains.values())
    if len(pulls) > 1 and sum(pulls) > 0:
        share = max(pulls) / sum(pulls)
        yield "domain_share", Value(share, 2.0 * (1.0 - share) / math.sqrt(looks.rows))
    long_enough = looks.longest_prompt >= max(LONG_PROMPT, 2 * looks.shortest_prompt)
    if long_enough:
        prompts = looks.prompts or looks.rows
        yield "prompts_at_longest", _share(looks.longest_prompts * prompts / looks.rows, prompts)


def _distance(seen: Seen) -> Gap | None:
    """Return the reverse KL of the student; of a tempered or cut rollout its learner knows it."""
    if seen.config.rollout.is_whole:
        return mean_reverse_kl(seen.scores)
    known = seen.train is not None and seen.train.reverse_kl is not None
    return known_gap(seen.scores, seen.train) if known else None


def _gaps(looks: TokenLooks) -> Named:
    root = math.sqrt(looks.gap_squares / looks.tokens)
    yield "gap", Value(root)
    if looks.ended:
        gap = (looks.ended_student - looks.ended_teacher) / looks.ended
        yield "end_gap", Value(gap, max(root, SPREAD) / math.sqrt(looks.ended))
    rest = looks.tokens - looks.first_tokens
    if looks.opened and rest > 0:
        yield "opening_gap", _opening(looks, rest)


def _opening(looks: TokenLooks, rest: int) -> Value:
    """Return by how much the teacher is further from the student at the first token than later.

    A template or a mode of thinking that the teacher does not have before it is a token that it
    would begin all responses with, whatever the prompt. Where it begins them in several ways the
    first token is a part of the answer, which the student may not know.
    """
    if max(looks.openings.values(), default=0) < SAME_OPENING * looks.opened:
        return Value(0.0)
    mean = looks.opened_gap / looks.opened
    spread = max(looks.opened_squares / looks.opened - mean * mean, 0.0)
    later = looks.student - looks.teacher - looks.first_student + looks.first_teacher
    square = looks.gap_squares / looks.tokens
    return Value(mean - later / rest, math.sqrt(spread / looks.opened + square / rest))


def _kept(looks: TokenLooks, seen: Seen) -> Named:
    if looks.looked and seen.config.rollout.candidates:
        yield "candidates_share", Value(looks.compared / looks.looked)
    if looks.ranked:
        yield "in_place", Value(looks.found / looks.ranked)
    if looks.compared:
        yield "overlap", Value(looks.overlap / looks.compared, 0.5 / math.sqrt(looks.compared))


def _trained(seen: Seen) -> Named:
    train = seen.train
    if train is None:
        return
    told = train.summary
    error = 1.0 / math.sqrt(max(train.tokens * _alike(seen.looks), 1.0))
    config = seen.config  # a sample says what the ids beside it lack
    masses = (
        () if config.score.sample or config.rollout.sample else ("student_mass", "teacher_mass")
    )
    for name in (*masses, "tail_clamped", "floored"):
        if name in told and not config.is_supervised:  # no teacher scores what it has sampled
            yield name, Value(told[name], 0.5 * error)
    rows = train.rows + train.stale_rows
    if rows:
        yield "stale_share", Value(train.stale_rows / rows)
    if train.steps:
        yield "skipped_share", Value(train.skipped_steps / train.steps)
    if train.rollout_kl is not None:
        yield "rollout_kl", Value(train.rollout_kl)


def _stepped(seen: Seen) -> Named:
    steps = seen.steps
    if not steps or "step" not in steps or not len(steps["step"]):
        return
    yield from _spike(steps, clipped_at=seen.config.train.max_grad_norm)
    if "rollout_kl" in steps and not seen.config.train.max_staleness:
        yield from _moved(steps["rollout_kl"])
    yield from _surprise(steps, seen)


def _moved(moved: NDArray[np.float64]) -> Named:
    """Yield how far the student is from its samples in the second half of a round's steps.

    The median, for one rare token more or less moves the figure of a step a lot.
    """
    late = moved[len(moved) // 2 :]
    late = late[np.isfinite(late)]
    if len(late):
        yield "moved", Value(float(np.median(late)), float(late.std()) / math.sqrt(len(late)))


def _surprise(steps: Steps, seen: Seen) -> Named:
    """Yield how far log q of sampled tokens is from what the entropy says, on average.

    Of the first steps, as many as tell most. A student that has moved by some KL from what sampled
    shifts the mean by up to √(2 KL) times the spread of log q, which is taken off. So would weights
    that heed the very token that was drawn: with those nothing is told.
    """
    names = ("student_token_logprob", "student_entropy", "tokens", "rollout_kl")
    if seen.config.loss.weights != WeightsSection() or not set(names) <= set(steps):
        return
    if seen.train is None or seen.train.rollout_kl is None:
        return
    table = np.stack([steps[name] for name in names])
    table = table[:, np.isfinite(table).all(axis=0) & (table[2] > 0)]
    if not table.shape[1]:
        return
    logprob, entropy, tokens, moved = table
    told = np.cumsum(tokens)
    shift = SPREAD * np.sqrt(2.0 * np.cumsum(np.maximum(moved, 0.0) * tokens) / told)
    error = SPREAD / np.sqrt(told * _alike(seen.looks))
    best = int(np.argmin(shift + 3.0 * error))
    gap = abs(float(np.cumsum((logprob + entropy) * tokens)[best])) / float(told[best])
    value = max(gap - float(shift[best]), 0.0)
    yield "surprise", Value(value, float(error[best]), int(steps["step"][0]))


def _alike(looks: TokenLooks | None) -> float:
    """Return how many tokens of one weight would tell as much as a token of these weights."""
    if looks is None or not looks.tokens or looks.weights <= 0.0 or looks.weight_squares <= 0.0:
        return 1.0
    return looks.weights * looks.weights / (looks.tokens * looks.weight_squares)


def _spike(steps: Steps, *, clipped_at: float) -> Named:
    """Yield the largest norm by the median.

    It is 1 where norms of the round differ so much anyway, and where none is clipped: a student
    that hardly learns any more has small norms, beside which a rare token's looks large.
    """
    norms = steps.get("grad_norm", np.empty(0))
    if np.isfinite(norms).sum() < LEAST_STEPS:
        return
    median, place = float(np.nanmedian(norms)), int(np.nanargmax(norms))
    if median <= 0:
        return
    with np.errstate(divide="ignore"):
        away = np.abs(np.log(norms[np.isfinite(norms)] / median))
    ratio = float(norms[place]) / median
    usual = math.exp(min(UNUSUAL * OF_MEDIAN * float(np.median(away)), 700.0))
    is_spike = ratio > usual and norms[place] > clipped_at
    yield "gradient_spike", Value(ratio if is_spike else 1.0, step=int(steps["step"][place]))


PARTS: tuple[Callable[[Seen], Named], ...] = (_sampled, _scored, _trained, _stepped)

FIGURES = {
    "response_tokens": "tokens of a response, mean of the round",
    "cut_off": "responses that ended at the limit, as a share",
    "end_gap": "student's minus teacher's log-probability of the token that ended a response",
    "opening_gap": "log q − log p of the first token of a response, minus that of the rest; 0 "
    "where the teacher would not begin nearly all of them alike",
    "student_mass": "student's mass on the ids kept of the teacher",
    "teacher_mass": "teacher's mass on the ids kept of it",
    "overlap": "student's own top ids (rollout.candidates) that are among those kept, as a share",
    "entropy_share": "student's entropy by its entropy plus reverse KL: mean log q by mean log p",
    "rollout_kl": "KL of what sampled to the learner before its first step",
    "surprise": "mean log-probability of sampled tokens plus entropy, in a round's first steps",
    "stale_share": "rows left out as too old",
    "tail_clamped": "tokens whose tail was clamped, as a share",
    "floored": "tokens with a floored teacher log-probability, as a share",
    "gap": "root mean square of log q − log p of sampled tokens",
    "in_place": "sampled tokens found among the kept ids, of those whose rank says so",
    "gradient_spike": "largest gradient norm of a round by the median, where it is odd and clipped",
    "moved": "median rollout_kl of the second half of a round's steps",
    "reverse_kl": "reverse KL of the round",
    "skipped_share": "steps that were skipped, as a share",
    "prompts_at_longest": "rows whose prompt is exactly as long as the longest one",
    "domain_share": "share of one domain in the sum of weight · (log q − log p)²",
    "candidates_share": "tokens with the student's own top ids, as a share",
}
"""What each figure is, in words."""
