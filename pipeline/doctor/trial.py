"""Trials of the configured engines: a teacher that is the student, and noise of every teacher.

With the same weights on both sides, scores must equal what the rollout drew from: a gap is a fault
of settings, not of training. Nothing is written.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from pipeline.admission.findings import Finding, State, looked
from pipeline.admission.models import Candidate
from pipeline.admission.starts import scoring_start
from pipeline.admission.trial import (
    Rows,
    Trial,
    first_prompts,
    is_tried,
    opened,
    sampling_sections,
    try_student,
    try_teacher,
    why_not_sampled,
)
from pipeline.engines.engine import Sample
from pipeline.engines.reach import Reach
from pipeline.engines.start import Note
from pipeline.runs.run import Run
from pipeline.scores.drift import gap_of
from pipeline.teachers.selftest import tolerance_of
from schemas.columns import Ids
from schemas.errors import DataError
from schemas.scoresignal import Signal

PROMPT_TOKENS, NEW_TOKENS = 256, 64
"""Most tokens of a trial's prompt and response."""


def try_engines(run: Run, note: Note) -> Iterator[Finding]:
    """Yield what the engines say: teacher = student first, then the noise of each teacher.

    Args:
        run: the run.
        note: told what is loaded, for that may take minutes.
    """
    if reason := why_not_sampled(run.config.rollout):
        yield Finding("student samples", "warning", f"not tried: {reason}")
        return
    note("loading the student to sample a few responses")
    one, trial = Candidate(run), Trial(note)
    sampled: list[tuple[Ids, Sample]] = []
    yield looked("student samples", lambda: _samples(one, sampled, trial))
    if not sampled:
        return
    if not is_tried(run.config.score):
        words = "not tried: servers elsewhere hold teachers, and are checked when they are asked"
        yield Finding("teacher = student", "warning", words)
        return
    note("loading the student as its own teacher")
    yield looked("teacher = student", lambda: _same_weights(one, sampled, trial))
    for name, section in run.config.teachers.items():
        if section.scores is None:
            note(f"loading teacher {name}")
            rows = Rows([p for p, _ in sampled], [s.ids for _, s in sampled])
            yield looked(f"noise of {name}", partial(_noise, run, name, rows, trial))


def _samples(one: Candidate, sampled: list[tuple[Ids, Sample]], trial: Trial) -> Finding:
    """Sample from the student with the engine of the rollout, and with that of the evaluation."""
    prompts, tokens, beyond = first_prompts(one, most=PROMPT_TOKENS), 0, list[Reach]()
    for section in sampling_sections(one, None, trial.note):
        samples, reach = try_student(one, section, prompts, new_tokens=NEW_TOKENS, trial=trial)
        beyond.append(reach)
        tokens += sum(len(sample.ids) for sample in samples)
        if not sampled:
            sampled.extend(zip(prompts, samples, strict=True))
    words = f"{tokens} tokens: what is drawn is what the engine's own scores say"
    return _told("student samples", words, {"tokens": tokens}, beyond)


def _same_weights(one: Candidate, sampled: list[tuple[Ids, Sample]], trial: Trial) -> Finding:
    """Hold the score engine with the student's weights against what the rollout drew from."""
    run = one.run
    dtype, k = run.config.student.dtype, max(run.config.score.k, 1)
    prompts, responses = [p for p, _ in sampled], [s.ids for _, s in sampled]
    with opened(scoring_start(run, one.student, dtype), trial) as engine:
        size = engine.vocab_size
        scores = engine.score(prompts, responses, signal=Signal(min(k, size)), vocab_size=size)
    drawn = np.concatenate([s.logprobs for _, s in sampled]).astype(np.float64)
    scored = scores.token_logprob.astype(np.float64)
    gap, apart = gap_of(scored, drawn), scored - drawn
    kl = float((np.expm1(apart) - apart).mean())
    figures = {"tokens": len(apart), "kl": kl, **asdict(gap)}
    words = (
        f"KL {kl:.2e} nats per token over {len(apart)} tokens; log-probabilities of rollout and "
        f"score differ by {gap.mean:.2e} on average, {gap.max:.2e} at most"
    )
    if not gap.mean <= tolerance_of(run.config.score, dtype):
        raise DataError(f"{words}: with the same weights they should be equal but for rounding")
    return Finding("teacher = student", "ok", words, figures)


def _noise(run: Run, name: str, rows: Rows, trial: Trial) -> Finding:
    size = int(Candidate(run).settings.vocab_size)
    noise, reach = try_teacher(run, name, rows, vocab_size=size, trial=trial)
    words = (
        f"scored alone, together and turned round, {noise.tokens} tokens differ by "
        f"{noise.mean:.2e} nats on average, {noise.max:.2e} at most"
    )
    return _told(f"noise of {name}", words, asdict(noise), [reach])


def _told(name: str, words: str, figures: dict[str, Any], reaches: list[Reach]) -> Finding:
    """Return what was found in a trial, with what it did not reach."""
    left = dict.fromkeys(words for reach in reaches if (words := reach.words()))
    state: State = "warning" if any(reach.borders for reach in reaches) else "ok"
    return Finding(name, state, "; ".join([words, *left]), figures | reaches[0].figures())
