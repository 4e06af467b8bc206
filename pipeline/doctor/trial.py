"""Trials of the configured engines: a teacher that is the student, and noise of every teacher.

With the same weights on both sides, scores must equal what the rollout drew from: a gap is a fault
of settings, not of training. Nothing is written.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from pipeline.doctor.examine import Finding, looked, student_source
from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Note, Start
from pipeline.models.source import find_model
from pipeline.models.tokenizer import model_tokenizer, vocabulary_size
from pipeline.prompts.encoding import Tally, prompt_tables
from pipeline.prompts.files import require_prompt_file
from pipeline.runs.run import Run
from pipeline.scores.drift import gap_of
from pipeline.teachers.selftest import ROWS, scoring_noise, tolerance_of
from schemas.columns import Ids
from schemas.errors import ConfigError, DataError
from schemas.scoresignal import Signal

NEW_TOKENS = 64
"""Most tokens of a trial's response."""


def try_engines(run: Run, note: Note) -> Iterator[Finding]:
    """Yield what the engines say: teacher = student first, then the noise of each teacher.

    Args:
        run: the run.
        note: told what is loaded, for that may take minutes.
    """
    sections = (run.config.rollout, run.config.score)
    if any(section.engine == "server" and section.server.urls for section in sections):
        words = (
            "not tried: servers elsewhere hold models of their own, and are checked at their start"
        )
        yield Finding("teacher = student", "warning", words)
        return
    note("loading the student to sample a few responses")
    sampled: list[tuple[Ids, Sample]] = []

    def same() -> Finding:
        sampled.extend(_sample(run, note))
        note("loading the student as its own teacher")
        return _same_weights(run, sampled, note)

    yield looked("teacher = student", same)
    for name, section in run.config.teachers.items():
        if sampled and section.scores is None:
            note(f"loading teacher {name}")
            yield looked(f"noise of {name}", partial(_noise, run, name, sampled, note))


def _sample(run: Run, note: Note) -> list[tuple[Ids, Sample]]:
    source, section = student_source(run), run.config.rollout
    tokenizer = model_tokenizer(source)
    file = require_prompt_file(
        run.place, run.config.prompts.train, key="prompts.train", settings=run.config.storage
    )
    table = next(prompt_tables(file, run.config, tokenizer, tally=Tally())).slice(0, ROWS)
    prompts = [np.array(ids, np.int32) for ids in table.column("prompt_ids").to_pylist()]
    if not prompts:
        raise ConfigError(f"{file.location} begins without a usable prompt")
    length = min(section.max_new_tokens, NEW_TOKENS)
    sampling = Sampling(1.0, 1.0, 0, length, (), vocab_size=vocabulary_size(tokenizer))
    start = Start(source, section, dtype=run.config.student.dtype, use="sample")
    with _opened(run, start, note) as engine:
        samples = engine.generate(prompts, list(range(len(prompts))), sampling)
    return list(zip(prompts, samples, strict=True))


def _same_weights(run: Run, sampled: list[tuple[Ids, Sample]], note: Note) -> Finding:
    """Hold the score engine with the student's weights against what the rollout drew from."""
    dtype, k = run.config.student.dtype, run.config.score.k
    prompts, responses = [p for p, _ in sampled], [s.ids for _, s in sampled]
    start = Start(student_source(run), run.config.score, dtype=dtype, use="score")
    with _opened(run, start, note) as engine:
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


def _noise(run: Run, name: str, sampled: list[tuple[Ids, Sample]], note: Note) -> Finding:
    section = run.config.teachers[name]
    source = find_model(run.place, section, f"teachers.{name}")
    prompts, responses = [p for p, _ in sampled], [s.ids for _, s in sampled]
    start = Start(source, run.config.score, dtype=section.dtype, use="score")
    with _opened(run, start, note) as engine:
        size = engine.vocab_size
        signal = Signal(min(run.config.score.k, size))
        noise = scoring_noise(engine, prompts, responses, signal=signal, vocab_size=size)
    noise.check(tolerance_of(run.config.score, section.dtype), where=f"teachers.{name}")
    words = (
        f"scored alone, together and turned round, {noise.tokens} tokens differ by "
        f"{noise.mean:.2e} nats on average, {noise.max:.2e} at most"
    )
    return Finding(f"noise of {name}", "ok", words, asdict(noise))


@contextmanager
def _opened(run: Run, start: Start, note: Note) -> Iterator[Engine]:
    """Give an engine for a block, which is asked for no longer sequences than a round has."""
    longest = run.config.prompts.max_tokens + run.config.rollout.max_new_tokens
    section = start.section.for_one_stage
    engine = open_engine(replace(start, section=section, max_tokens=longest), note)
    try:
        yield engine
    finally:
        engine.close()
