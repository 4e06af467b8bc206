"""Trials: a model is loaded by the engine that will run it, and tried on a few rows.

The longest that a run allows is among them where it is cheap; what is not tried is told.

Must not: write anything.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from pipeline.admission.models import Candidate, teacher_source
from pipeline.admission.settings import engine_sections
from pipeline.admission.starts import response_limit, sampling_start, scoring_start
from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.kept import done
from pipeline.engines.opening import open_engine
from pipeline.engines.proof import proof_key, proved_engine
from pipeline.engines.reach import Reach, reach_of
from pipeline.engines.start import Ledger, Note, Start
from pipeline.models.source import ModelSource
from pipeline.models.tokenizer import vocabulary_size
from pipeline.prompts.encoding import Tally, prompt_tables
from pipeline.prompts.files import require_prompt_file
from pipeline.runs.figures import Noise
from pipeline.runs.run import Run
from pipeline.scores.tolerances import EXACT
from pipeline.teachers.selftest import few_rows, scoring_noise, tolerance_of
from schemas.columns import Ids
from schemas.config.engines import EngineSection
from schemas.errors import ConfigError, DataError
from schemas.scoresignal import Signal

LAST_TOKENS = 8
"""Tokens of the longest row that stand for a response."""

FROM_PROMPTS = 64
"""Prompts, from the begin of their file, that the rows of a trial are chosen from."""


@dataclass(frozen=True)
class Rows:
    """Short rows of several lengths."""

    prompts: list[Ids]
    responses: list[Ids]

    def lengths(self) -> list[int]:
        """Return the tokens of each."""
        return [len(p) + len(r) for p, r in zip(self.prompts, self.responses, strict=True)]

    def up_to(self, tokens: int) -> "Rows":
        """Return them with one of so many tokens, if they are all shorter."""
        if max(self.lengths()) >= tokens:
            return self
        row = np.resize(np.concatenate([*self.prompts, *self.responses]), tokens)
        at = max(1, tokens - LAST_TOKENS)
        return Rows([*self.prompts, row[:at]], [*self.responses, row[at:]])


@dataclass(frozen=True)
class Trial:
    """What all trials of a command share."""

    note: Note
    """Told of a start that takes long."""
    ledger: Ledger | None = None
    """Where it is remembered which engines were held; None for this process alone."""


def is_tried(section: EngineSection) -> bool:
    """Return whether a teacher's engine can be tried: servers elsewhere may not be up yet."""
    return section.engine != "server" or not section.server.urls


def why_not_sampled(section: EngineSection) -> str | None:
    """Return why a student cannot be tried on an engine yet, or None where it can."""
    served = section.server
    if section.engine == "server" and served.urls and "{policy}" in (served.model or ""):
        return f"server.model = {served.model!r} names weights that only an imported student has"
    return None


def sampling_sections(one: Candidate, stage: str | None, note: Note) -> list[EngineSection]:
    """Return the sections whose engines sample from the student here, one of each kind.

    Args:
        one: the run.
        stage: the only stage that this machine is asked for; None for all of them.
        note: told of those that cannot be tried yet.
    """
    found: dict[str, EngineSection] = {}
    for name, section in engine_sections(one.run).items():
        if name == "score" or stage not in (None, name):
            continue
        if reason := why_not_sampled(section):
            note(f"student: not tried on the servers of {name} before its stage opens: {reason}")
            continue
        start = sampling_start(one.run, section, one.student, dtype="", kept=False)
        kind = section.device if section.engine == "hf" else (section.server, start.fixed)
        found.setdefault(repr((section.engine, kind)), section)
    return list(found.values())


def first_prompts(one: Candidate, *, most: int) -> list[Ids]:
    """Return a few prompts of mixed lengths from the begin of the prompt file.

    Args:
        one: the run.
        most: tokens of the longest.

    Raises:
        ConfigError: none of the first records is usable.
    """
    run = one.run
    source = run.config.prompts.train
    file = require_prompt_file(run.place, source, key="prompts.train", config=run.config)
    table = next(prompt_tables(file, run.config, one.tokenizer, tally=Tally()))
    column = table.column("prompt_ids").slice(0, FROM_PROMPTS)
    prompts = [np.array(ids, np.int32) for ids in column.to_pylist()]
    if not prompts:
        raise ConfigError(f"{file.location} begins without a usable prompt")
    return cut_rows(prompts, most=most)


def cut_rows(rows: Sequence[Ids], *, most: int) -> list[Ids]:
    """Return a few rows, cut so that their lengths are mixed even where all of them are long.

    Args:
        rows: ids.
        most: tokens of the longest.
    """
    chosen = [rows[i][:most] for i in few_rows(np.array([min(len(row), most) for row in rows]))]
    steps = [-(-most * (n + 1) // len(chosen)) for n in range(len(chosen))]
    return [row[:n] for row, n in zip(sorted(chosen, key=len), steps, strict=True)]


def try_student(
    one: Candidate,
    section: EngineSection,
    prompts: Sequence[Ids],
    *,
    new_tokens: int,
    trial: Trial,
) -> tuple[list[Sample], Reach]:
    """Return what the student samples with a stage's engine, and how far that was tried.

    Its own distribution is drawn from, and nothing ends a response.

    Args:
        one: the run.
        section: of the stage.
        prompts: what it is asked.
        new_tokens: most tokens of a response.
        trial: who is told, and where it is remembered.

    Raises:
        ConfigError: the model cannot be loaded, or the engine is not installed.
        DataError: a log-probability is none, or an id is outside the vocabulary.
        StorageError: no server answers.
    """
    run, size = one.run, vocabulary_size(one.tokenizer)
    length = min(response_limit(run, section), new_tokens)
    sampling = Sampling(1.0, 1.0, 0, length, (), vocab_size=size)
    dtype = run.config.student.dtype
    start = sampling_start(run, section, one.student, dtype=dtype, kept=True)
    with opened(start, trial) as engine:
        samples = engine.generate(prompts, list(range(len(prompts))), sampling)
    for sample in samples:
        good = np.isfinite(sample.logprobs) & (sample.logprobs <= EXACT)
        if not good.all() or int(sample.ids.max(initial=0)) >= size:
            raise DataError(
                f"the student sampled with log-probabilities {sample.logprobs[~good][:3]} and ids "
                f"up to {int(sample.ids.max(initial=0))}, expected numbers up to 0 and ids below "
                f"{size}: look at the engine's settings and version. Nothing was stored"
            )
    return samples, reach_of(start).with_rows(
        len(p) + len(sample.ids) for p, sample in zip(prompts, samples, strict=True)
    )


def try_teacher(
    run: Run, name: str, rows: Rows, *, vocab_size: int, trial: Trial
) -> tuple[Noise, Reach]:
    """Return how far a teacher's scores depend on what else is scored, and what was tried.

    Args:
        run: the run.
        name: of the teacher.
        rows: what it scores.
        vocab_size: ids of the student.
        trial: who is told, and where it is remembered.

    Raises:
        ConfigError: the model cannot be loaded, or the engine is not installed.
        DataError: they depend on it by more than rounding, or a top-k is none.
    """
    section, source = run.config.teachers[name], teacher_source(run, name)
    start = scoring_start(run, source, section.dtype)
    reach = reach_of(start)
    rows = rows.up_to(reach.tried)
    with opened(start, trial) as engine:
        size = min(engine.vocab_size, vocab_size)
        signal = Signal(min(max(run.config.score.k, 1), size))
        noise = scoring_noise(engine, rows.prompts, rows.responses, signal=signal, vocab_size=size)
    noise.check(tolerance_of(run.config.score, section.dtype), where=f"teachers.{name}")
    return noise, reach.with_rows(rows.lengths())


@contextmanager
def opened(start: Start, trial: Trial) -> Iterator[Engine]:
    """Give an engine for a block; one that is to sample proves itself first."""
    begin = proved_engine if start.use == "sample" else open_engine
    section = start.section.for_one_stage
    engine = begin(replace(start, section=section, ledger=trial.ledger), trial.note)
    try:
        if start.use == "sample" and engine.name == "hf" and _is_whole_folder(start.source):
            done(proof_key(start))  # checkpoint 0 is the same model
        yield engine
    finally:
        engine.close()


def _is_whole_folder(source: ModelSource) -> bool:
    return source.is_folder and source.base is None
