"""What a trial of a model stands for: its files, its engine and versions, settings that matter.

Must not: read weights, which takes minutes: their names and sizes stand for them. Who scores is
identified by content in any case.
"""

from pathlib import Path
from typing import Any

from pipeline.admission.models import Candidate, teacher_source
from pipeline.admission.starts import sampling_start
from pipeline.engines.opening import engine_version, scoring_version
from pipeline.models.source import ModelSource
from pipeline.runs.run import Run
from pipeline.store.disk.files import file_sha256
from schemas.config.engines import EngineSection

SMALL_BYTES = 1 << 26
"""Files up to this size stand for themselves; of a larger one its size does."""


READ = (".json", ".safetensors", ".model", ".jinja", ".txt", ".tiktoken", ".py")
"""Endings of the files that a model is made of."""


def seen_of_student(one: Candidate, section: EngineSection) -> dict[str, Any]:
    """Return what a trial of the student on the engine of a stage stands for.

    Raises:
        ConfigError: the engine is not installed, or a server holds too few tokens.
        StorageError: no server answers.
    """
    start = sampling_start(
        one.run, section, one.student, dtype=one.run.config.student.dtype, kept=True
    )
    version = scoring_version(section, (start.max_tokens or 0) - 1, one.student)
    engine = {"engine": section.engine, "engine_version": version, "dtype": start.dtype}
    return _model(one.student) | engine


def seen_of(run: Run, teacher: str) -> dict[str, Any]:
    """Return what a trial of a teacher stands for.

    Raises:
        ConfigError: the model is not there, or its engine is not installed.
    """
    scoring = run.config.score
    source, dtype = teacher_source(run, teacher), run.config.teachers[teacher].dtype
    limits = {"k": scoring.k, "noise_tolerance": scoring.noise_tolerance}
    version = engine_version(scoring.engine, source)
    engine = {"engine": scoring.engine, "engine_version": version, "dtype": dtype}
    return _model(source) | engine | limits


def _model(source: ModelSource) -> dict[str, Any]:
    found = {"files": _files(source)}
    return found if source.base is None else found | {"base": _files(source.base)}


def _files(source: ModelSource) -> dict[str, Any]:
    if not source.is_folder:
        return {"hub": source.location, "revision": source.revision}
    found = Path(source.location).iterdir()
    files = sorted(path for path in found if path.suffix in READ and path.is_file())
    return {path.name: _content(path) for path in files}


def _content(path: Path) -> str | int:
    size = path.stat().st_size
    return file_sha256(path) if size <= SMALL_BYTES else size
