"""What a trial of a model stands for: its files, its engine and versions, settings that matter.

Must not: read weights, which takes minutes: their names and sizes stand for them. Who scores is
identified by content in any case.
"""

from pathlib import Path
from typing import Any

from pipeline.admission.models import Candidate, teacher_source
from pipeline.engines.opening import engine_version
from pipeline.models.source import ModelSource
from pipeline.runs.run import Run
from pipeline.store.disk.files import file_sha256

SMALL_BYTES = 1 << 26
"""Files up to this size stand for themselves; of a larger one its size does."""


READ = (".json", ".safetensors", ".model", ".jinja", ".txt", ".tiktoken", ".py")
"""Endings of the files that a model is made of."""


def seen_of(run: Run, teacher: str | None) -> dict[str, Any]:
    """Return what a trial of the student, or of a teacher, stands for.

    Raises:
        ConfigError: the model is not there, or its engine is not installed.
    """
    if teacher is None:
        source, section, dtype = (
            Candidate(run).student,
            run.config.rollout,
            run.config.student.dtype,
        )
        return _model(source) | _engine(section.engine, source, dtype)
    scoring = run.config.score
    source, dtype = teacher_source(run, teacher), run.config.teachers[teacher].dtype
    limits = {"k": scoring.k, "noise_tolerance": scoring.noise_tolerance}
    return _model(source) | _engine(scoring.engine, source, dtype) | limits


def _engine(name: Any, source: ModelSource, dtype: str) -> dict[str, Any]:
    return {"engine": name, "engine_version": engine_version(name, source), "dtype": dtype}


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
