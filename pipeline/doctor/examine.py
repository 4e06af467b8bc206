"""What `opd doctor` looks at before GPU hours are spent: each thing alone, none ends the others.

Promises: nothing of a run is written but the probe of its store, which is deleted, and a drift
record where one is asked for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from pipeline.engines.opening import require_engine
from pipeline.engines.processes import find_orphans
from pipeline.models.accounting import require_read
from pipeline.models.loading import require_causal, require_packages
from pipeline.models.own.effective import effective_settings
from pipeline.models.source import ModelSource, find_model, load_settings
from pipeline.models.tokenizer import check_fits, model_tokenizer, vocabulary_size
from pipeline.models.tokenizeridentity import check_same_tokenizer
from pipeline.prompts.encoding import Tally, prompt_tables
from pipeline.prompts.files import require_prompt_file
from pipeline.rewards.graders import try_grader
from pipeline.rewards.location import find_grader
from pipeline.runs.run import Run
from pipeline.runs.software import software_versions
from pipeline.store.writer import require_safe_writes
from pipeline.teachers.limits import check_context, check_vocabulary
from schemas.errors import OpdError

State = Literal["ok", "warning", "failed"]

GIB = 1 << 30

FREE_SHARE = 0.8
"""Share of a GPU's memory that should be free before anything starts."""


@dataclass(frozen=True)
class Finding:
    """What one look found."""

    name: str
    state: State
    words: str
    figures: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    """Exit code of the error that it is; 0 where it is none."""


Look = Callable[[], Finding]


def examine(run: Run) -> Iterator[Finding]:
    """Yield what is found without loading a model's weights."""
    yield looked("versions", _versions)
    yield looked("store", lambda: _store(run))
    yield looked("engines", lambda: _engines(run))
    yield looked("orphans", _orphans)
    yield looked("gpus", _gpus)
    student = looked("student", lambda: _student(run))
    yield looked("prompts", lambda: _prompts(run, read=student.state != "failed"))
    yield looked("grader", lambda: _grader(run))
    yield student
    for name in run.config.teachers:
        yield looked(f"teacher {name}", partial(_teacher, run, name))


def looked(name: str, look: Look) -> Finding:
    """Return what a look finds; an error becomes a finding."""
    try:
        return look()
    except OpdError as error:
        return Finding(name, "failed", str(error), exit_code=error.exit_code)


def student_source(run: Run) -> ModelSource:
    """Return where the student of the configuration is."""
    return find_model(run.place, run.config.student, "student")


def _versions() -> Finding:
    found = software_versions()
    return Finding("versions", "ok", ", ".join(f"{n} {v}" for n, v in found.items()), found)


def _store(run: Run) -> Finding:
    storage = run.storage
    if storage.single_writer:
        return Finding(
            "store",
            "warning",
            f"{storage.root} is not asked whether it honours create-only writes, for "
            "storage.single_writer is set: make sure that only one opd process writes to it at a "
            "time",
        )
    require_safe_writes(storage)
    return Finding("store", "ok", f"{storage.root} honours create-only writes")


def _engines(run: Run) -> Finding:
    config = run.config
    stages = {"rollout": config.rollout, "score": config.score, "eval": config.eval}
    used = {stage: section for stage, section in stages.items() if section is not None}
    for section in used.values():
        require_engine(section.engine, section.server.urls)
    named = {stage: section.engine for stage, section in used.items()}
    words = ", ".join(f"{stage} {engine}" for stage, engine in named.items())
    return Finding("engines", "ok", f"{words}: installed", named)


def _orphans() -> Finding:
    found = find_orphans()
    if not found:
        return Finding("orphans", "ok", "no engine has outlived its stage")
    each = [f"{o.pid} ({o.command}, {o.memory_bytes / GIB:.1f} GiB, of {o.owner})" for o in found]
    pids = [orphan.pid for orphan in found]
    return Finding(
        "orphans",
        "warning",
        f"engine processes whose stage is gone: {'; '.join(each)}. End them with: "
        f"kill -9 {' '.join(map(str, pids))}",
        {"pids": pids},
    )


def _gpus() -> Finding:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return Finding("gpus", "ok", "none: models run on the CPU", {"count": 0})
    memory = [torch.cuda.mem_get_info(index) for index in range(count)]
    words = [
        f"{index}: {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        for index, (free, total) in enumerate(memory)
    ]
    taken = any(free < FREE_SHARE * total for free, total in memory)
    figures = {"count": count, "free_bytes": [free for free, _ in memory]}
    return Finding("gpus", "warning" if taken else "ok", "; ".join(words), figures)


def _prompts(run: Run, *, read: bool) -> Finding:
    """Return that every prompt can be used; only that the files are there, without a student."""
    found, skipped = [], 0
    for key in ("train", "eval"):
        location = getattr(run.config.prompts, key)
        if location is None:
            continue
        named, settings = f"prompts.{key}", run.config.storage
        file = require_prompt_file(run.place, location, key=named, settings=settings)
        words = file.location
        if read:
            tally, tokenizer = Tally(), model_tokenizer(student_source(run))
            rows = sum(t.num_rows for t in prompt_tables(file, run.config, tokenizer, tally=tally))
            skipped += tally.skipped.total()
            words += f": {rows} prompts"
            words += f", left out {dict(tally.skipped)}" if tally.skipped else ""
        found.append(words)
    return Finding("prompts", "warning" if skipped else "ok", "; ".join(found))


def _grader(run: Run) -> Finding:
    if run.config.eval is None:
        return Finding("grader", "ok", "none: there is no [eval]")
    grader = find_grader(run.config.eval, run.place)
    try_grader(grader)
    return Finding("grader", "ok", f"{grader.name}: can be used")


def _student(run: Run) -> Finding:
    source = student_source(run)
    require_packages(source)
    require_causal(source)
    require_read(source)
    check_fits(model_tokenizer(source), load_settings(source), "student.model")
    return _fitting("student", source, run, scores=False)


def _teacher(run: Run, name: str) -> Finding:
    section, label = run.config.teachers[name], f"teacher {name}"
    if section.scores is not None:
        return Finding(label, "ok", f"stored scores of {section.scores}; the model is not used")
    source = find_model(run.place, section, f"teachers.{name}")
    if run.config.score.engine == "hf":
        require_packages(source)
    require_causal(source)
    require_read(source)
    theirs = model_tokenizer(source)
    try:
        student = student_source(run)
        ours, size = model_tokenizer(student), load_settings(student).vocab_size
    except OpdError:
        words = "not held against the student, which cannot be used"
        return Finding(label, "warning", words)
    check_same_tokenizer(ours, theirs, teacher_name=name, mode=section.tokenizer_check)
    check_vocabulary(name, vocabulary_size(theirs), size)
    return _fitting(label, source, run, scores=True)


def _fitting(label: str, source: ModelSource, run: Run, *, scores: bool) -> Finding:
    """Return that the longest sequence fits a model, and a place more where it scores."""
    settings = load_settings(source)
    needed = check_context(run, settings, label=label, scores=scores)
    held = getattr(settings, "max_position_embeddings", None)
    words = f"{source.location}: {settings.vocab_size} ids, {held} tokens, {needed} needed"
    words += f"; {effective_settings(source, model_tokenizer(source)).words()}"
    return Finding(label, "ok", words, {"context": held, "needed": needed})
