"""Looks at the models of a run that load no weights: files, tokenizers, vocabularies, contexts.

Must not: write anything, or run an engine.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.admission.findings import Finding
from pipeline.admission.starts import sampling_start, scoring_start
from pipeline.engines.reach import reach_of
from pipeline.engines.start import Start
from pipeline.models.accounting import require_read
from pipeline.models.loading import empty_model, require_causal, require_packages
from pipeline.models.lora import check_continued, check_targets
from pipeline.models.naming import resolved_place
from pipeline.models.own.effective import effective_settings
from pipeline.models.source import ModelSource, find_model, load_settings, local_folder
from pipeline.models.tokenizer import check_fits, model_tokenizer, vocabulary_size
from pipeline.models.tokenizeridentity import check_same_tokenizer
from pipeline.runs.run import Run
from pipeline.teachers.limits import check_context, check_k, check_vocabulary
from schemas.errors import ConfigError, OpdError


@dataclass(frozen=True)
class Candidate:
    """A run that is looked at; its student's files are read once, which takes a second."""

    run: Run

    @cached_property
    def student(self) -> ModelSource:
        """Where the student of the configuration is."""
        return find_model(self.run.place, self.run.config.student, "student")

    @cached_property
    def settings(self) -> Any:
        """The student's `config.json`."""
        return load_settings(self.student)

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer."""
        return model_tokenizer(self.student)


def teacher_source(run: Run, name: str) -> ModelSource:
    """Return where a teacher of the configuration is."""
    return find_model(run.place, run.config.teachers[name], f"teachers.{name}")


def is_here(run: Run, name: str) -> bool:
    """Return whether a teacher's files are on this machine; one of stored scores needs none."""
    section = run.config.teachers[name]
    if section.scores is not None:
        return True
    if section.revision is not None:
        source = ModelSource(section.model, section.revision, section.trust_remote_code)
        return local_folder(source) is not None
    return Path(resolved_place(run.place, section.model, f"teachers.{name}.model")).exists()


def look_at_student(one: Candidate) -> Finding:
    """Return that the student can learn and hold what the run samples.

    Raises:
        ConfigError: it cannot.
    """
    run, source = one.run, one.student
    require_packages(source)
    require_causal(source)
    require_read(source)
    settings = one.settings
    check_fits(one.tokenizer, settings, "student.model")
    _check_adapter(run, source)
    section = run.config.eval
    held, limit = _held(settings), run.config.prompts.max_tokens
    if section is not None and section.max_new_tokens is not None and held is not None:
        needed = limit + section.max_new_tokens
        if held < needed:
            raise ConfigError(
                f"student holds {held} tokens, but prompts.max_tokens + eval.max_new_tokens = "
                f"{needed}: lower one of them"
            )
    start = sampling_start(run, run.config.rollout, source, dtype="", kept=False)
    return _fitting("student", settings, run, start)


def look_at_teacher(one: Candidate, name: str, *, whole: bool) -> Finding:
    """Return that a teacher may score the student, as far as its files are on this machine.

    Args:
        one: the run.
        name: of the teacher.
        whole: whether it is to score on this machine, so that it must be here.

    Raises:
        ConfigError: it cannot be used, or holds too few tokens or ids.
        IdentityError: its tokenizer or its vocabulary is another one.
    """
    run, label = one.run, f"teacher {name}"
    section = run.config.teachers[name]
    if section.scores is not None:
        return Finding(label, "ok", f"stored scores of {section.scores}; the model is not used")
    if not whole and not is_here(run, name):
        words = f"{section.model} is not on this machine: `opd score` looks at it before it scores"
        return Finding(label, "warning", words)
    source = teacher_source(run, name)
    if whole and run.config.score.engine == "hf":
        require_packages(source)
    require_causal(source)
    require_read(source)
    theirs = model_tokenizer(source)
    try:
        ours, size = one.tokenizer, one.settings.vocab_size
    except OpdError:
        return Finding(label, "warning", "not held against the student, which cannot be used")
    check_same_tokenizer(ours, theirs, teacher_name=name, mode=section.tokenizer_check)
    settings = load_settings(source)
    check_vocabulary(name, vocabulary_size(theirs), size)
    check_fits(theirs, settings, f"teachers.{name}.model")
    check_k(run.config.score.k, min(int(settings.vocab_size), size))
    return _fitting(label, settings, run, scoring_start(run, source, section.dtype))


def _check_adapter(run: Run, source: ModelSource) -> None:
    """Make sure that the student has the layers that `[train.lora]` names, or is its adapter."""
    lora = run.config.train.lora
    if lora is None or not source.whole.is_folder:
        return
    model = empty_model(source.whole)
    if source.base is None:
        check_targets(model, lora)
    else:
        check_continued(Path(source.location), lora, model)


def _fitting(label: str, settings: Any, run: Run, start: Start) -> Finding:
    """Return that the longest sequence fits a model, and a place more where it scores."""
    source = start.source
    needed = check_context(run, settings, label=label, scores=start.use == "score")
    words = f"{source.location}: {settings.vocab_size} ids, {_held(settings)} tokens, "
    words += f"{needed} needed; {effective_settings(source, model_tokenizer(source)).words()}"
    if left := reach_of(start).words():
        words += f"; in trials, {left}"
    return Finding(label, "ok", words, {"context": _held(settings), "needed": needed})


def _held(settings: Any) -> int | None:
    held: int | None = getattr(settings, "max_position_embeddings", None)
    return held
