"""Trials: a model is loaded by the engine that will run it, and tried on a few short rows.

Must not: write anything.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from pipeline.admission.models import Candidate, teacher_source
from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.opening import open_engine
from pipeline.engines.proof import proved_engine
from pipeline.engines.start import Note, Start
from pipeline.models.tokenizer import vocabulary_size
from pipeline.prompts.encoding import Tally, prompt_tables
from pipeline.prompts.files import require_prompt_file
from pipeline.runs.figures import Noise
from pipeline.runs.run import Run
from pipeline.scores.tolerances import EXACT
from pipeline.teachers.limits import longest
from pipeline.teachers.selftest import few_rows, scoring_noise, tolerance_of
from schemas.columns import Ids
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError, DataError
from schemas.scoresignal import Signal

FROM_PROMPTS = 64
"""Prompts, from the begin of their file, that the rows of a trial are chosen from."""


@dataclass(frozen=True)
class Rows:
    """Short rows of several lengths."""

    prompts: list[Ids]
    responses: list[Ids]


def is_tried(section: EngineSection) -> bool:
    """Return whether an engine can be tried: a server's model is checked when it is asked."""
    return section.engine != "server"


def first_prompts(one: Candidate) -> list[Ids]:
    """Return a few prompts of mixed lengths from the begin of the prompt file.

    Raises:
        ConfigError: none of the first records is usable.
    """
    run = one.run
    location, settings = run.config.prompts.train, run.config.storage
    file = require_prompt_file(run.place, location, key="prompts.train", settings=settings)
    table = next(prompt_tables(file, run.config, one.tokenizer, tally=Tally()))
    column = table.column("prompt_ids").slice(0, FROM_PROMPTS)
    prompts = [np.array(ids, np.int32) for ids in column.to_pylist()]
    if not prompts:
        raise ConfigError(f"{file.location} begins without a usable prompt")
    return [prompts[i] for i in few_rows(np.array([len(p) for p in prompts]))]


def try_student(
    one: Candidate, prompts: Sequence[Ids], *, new_tokens: int, note: Note
) -> list[Sample]:
    """Return what the student samples with the rollout's engine: its own distribution, no end.

    Raises:
        ConfigError: the model cannot be loaded, or the engine is not installed.
        DataError: a log-probability is none, or an id is outside the vocabulary.
    """
    run, section, size = one.run, one.run.config.rollout, vocabulary_size(one.tokenizer)
    length = min(section.max_new_tokens, new_tokens)
    sampling = Sampling(1.0, 1.0, 0, length, (), vocab_size=size)
    start = Start(one.student, section, dtype=run.config.student.dtype, use="sample")
    with opened(run, start, note) as engine:
        samples = engine.generate(prompts, list(range(len(prompts))), sampling)
    for sample in samples:
        good = np.isfinite(sample.logprobs) & (sample.logprobs <= EXACT)
        if not good.all() or int(sample.ids.max(initial=0)) >= size:
            raise DataError(
                f"the student sampled with log-probabilities {sample.logprobs[~good][:3]} and ids "
                f"up to {int(sample.ids.max(initial=0))}, expected numbers up to 0 and ids below "
                f"{size}: look at the engine's settings and version. Nothing was stored"
            )
    return samples


def try_teacher(run: Run, name: str, rows: Rows, *, vocab_size: int, note: Note) -> Noise:
    """Return how far a teacher's scores of rows depend on what else is scored.

    Args:
        run: the run.
        name: of the teacher.
        rows: what it scores.
        vocab_size: ids of the student.
        note: told of a start that takes long.

    Raises:
        ConfigError: the model cannot be loaded, or the engine is not installed.
        DataError: they depend on it by more than rounding, or a top-k is none.
    """
    section, source = run.config.teachers[name], teacher_source(run, name)
    start = Start(source, run.config.score, dtype=section.dtype, use="score")
    with opened(run, start, note) as engine:
        size = min(engine.vocab_size, vocab_size)
        signal = Signal(min(max(run.config.score.k, 1), size))
        noise = scoring_noise(engine, rows.prompts, rows.responses, signal=signal, vocab_size=size)
    noise.check(tolerance_of(run.config.score, section.dtype), where=f"teachers.{name}")
    return noise


@contextmanager
def opened(run: Run, start: Start, note: Note) -> Iterator[Engine]:
    """Give an engine for a block, which is asked for no longer sequences than a round has.

    One that is to sample proves itself first.
    """
    section, begin = start.section.for_one_stage, open_engine
    if start.use == "sample":
        begin = proved_engine
    engine = begin(replace(start, section=section, max_tokens=longest(run)), note)
    try:
        yield engine
    finally:
        engine.close()
