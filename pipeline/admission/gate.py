"""The one gate before a run begins: all that can be known is checked, and then the run is pinned.

Promises: whatever is refused here leaves the store as it was, so that any setting may be changed;
a run that has begun passes at once, but for teachers that were never tried as they are now.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from pipeline.admission.models import Candidate, look_at_student, look_at_teacher
from pipeline.admission.seen import seen_of, seen_of_student
from pipeline.admission.settings import (
    look_at_engines,
    look_at_grader,
    look_at_learner,
    look_at_loss,
    look_at_references,
    look_at_sampling,
)
from pipeline.admission.trial import (
    Rows,
    Trial,
    cut_rows,
    first_prompts,
    is_tried,
    sampling_sections,
    try_student,
    try_teacher,
)
from pipeline.checkpoints.student import policy_of_round
from pipeline.engines.engine import Sample
from pipeline.engines.ledger import RunLedger
from pipeline.engines.reach import SHORT_ROW, Reach
from pipeline.engines.start import Note
from pipeline.prompts.pinning import made_prompts, read_prompts
from pipeline.runs.run import Run, pin_run
from pipeline.store.records import create_record, find_record
from pipeline.store.writer import require_safe_writes
from pipeline.teachers.teacher import find_scorer
from schemas.columns import Ids, list_rows
from schemas.fingerprint import fingerprint
from schemas.keys import (
    STUDENT,
    admission_key,
    manifest_key,
    prompts_folder,
    run_key,
    teacher_label,
)
from schemas.records.runs import AdmissionRecord, PromptsManifest

NEW_TOKENS = 8
PROMPT_TOKENS = SHORT_ROW - NEW_TOKENS
"""Tokens of what the student samples, and of the longest prompt among the short rows of a trial:
they cost a forward of a few hundred tokens. Each round tests its teachers on its own rows."""

Figures = dict[str, Any]


def begin(run: Run, *, stage: str | None, note: Note) -> None:
    """Check what a run needs, import its student and pin it, unless it has begun.

    Args:
        run: the run.
        stage: the only stage that this machine is asked for; None where it does all of them.
        note: told what is loaded, and what is left to other machines.

    Raises:
        ConfigError: a setting, a model or a file cannot be used.
        IdentityError: a teacher may not score this student.
        DataError: an engine gives impossible numbers, or some that depend on their neighbours.
        CapacityError: a model does not fit.
        StorageError: the student is to sample on servers, and none answers.
    """
    if run.storage.exists(run_key(run.name)):
        require_safe_writes(run.storage)  # the store may be another one by now
        return
    one = Candidate(run)
    for words in _looks(one, stage):
        note(words)
    splits = ("train",) if run.config.eval is None else ("train", "eval")
    pins = [made_prompts(run, "eval" if s == "eval" else "train", one.tokenizer) for s in splits]
    require_safe_writes(run.storage)
    ledger = RunLedger(run)
    records = _trials(one, stage, Trial(note, ledger))
    policy_of_round(run, 0)
    pin_run(run)
    for pin in pins:
        pin()
    ledger.write()
    for record in records:
        _keep(run, record)


def try_teachers(run: Run, *, note: Note) -> None:
    """Try the teachers of a run that has begun, each unless it was tried as it is now.

    They score a few of the prompts that are pinned, before another round is sampled.

    Raises:
        ConfigError: as `begin`.
    """
    key = manifest_key(prompts_folder(run.name, "train"))
    for name, section in run.config.teachers.items():
        if section.scores is not None or not _is_tried(run):
            continue
        label = teacher_label(name)
        seen = seen_of(run, name)
        if find_record(run.storage, _key(run, label, seen), AdmissionRecord) is not None:
            continue
        pinned = find_record(run.storage, key, PromptsManifest)
        if pinned is None:
            continue
        size = find_scorer(run, 0, name).identity.vocab_size
        first = pinned.model_copy(update={"shards": pinned.shards[:1]})
        prompts = list_rows(read_prompts(run.storage, first), "prompt_ids")
        chosen = cut_rows(prompts, most=PROMPT_TOKENS)
        trial = Trial(note, RunLedger(run))
        _keep(run, _tried(run, name, _halves(chosen), vocab_size=size, trial=trial))


def _looks(one: Candidate, stage: str | None) -> list[str]:
    """Look at everything that takes no weights; return what is worth telling."""
    stages = ("rollout", "score", "eval") if stage is None else (stage,)
    run = one.run
    findings = [
        look_at_student(one),
        *(look_at_teacher(one, name, whole=stage is None) for name in run.config.teachers),
        look_at_sampling(one),
        look_at_engines(run, stages),
        look_at_grader(run),
        look_at_loss(run),
        look_at_references(one),
        *([look_at_learner(run)] if stage is None else []),
    ]
    return [f"{found.name}: {found.words}" for found in findings if found.state != "ok"]


def _trials(one: Candidate, stage: str | None, trial: Trial) -> list[AdmissionRecord]:
    """Return what trials of the student, and of the teachers where they are here, have found."""
    run = one.run
    if run.config.run.admission != "full":
        return []
    sections = sampling_sections(one, stage, trial.note)
    names = [name for name, t in run.config.teachers.items() if t.scores is None]
    names = names if stage is None and _is_tried(run) else []
    if not sections and not names:
        return []
    prompts, records = first_prompts(one, most=PROMPT_TOKENS), list[AdmissionRecord]()
    rows = _halves(prompts)
    for section in sections:
        samples, reach = try_student(one, section, prompts, new_tokens=NEW_TOKENS, trial=trial)
        rows = Rows(prompts, [sample.ids for sample in samples])
        seen = seen_of_student(one, section)
        figures = _sampled(samples) | _told(reach, "student", trial)
        records.append(_record(run, STUDENT, seen, figures))
    size = int(one.settings.vocab_size)
    tried = partial(_tried, run, rows=rows, vocab_size=size, trial=trial)
    return [*records, *map(tried, names)]


def _tried(run: Run, name: str, rows: Rows, *, vocab_size: int, trial: Trial) -> AdmissionRecord:
    seen = seen_of(run, name)
    noise, reach = try_teacher(run, name, rows, vocab_size=vocab_size, trial=trial)
    figures = asdict(noise) | _told(reach, f"teacher {name}", trial)
    return _record(run, teacher_label(name), seen, figures)


def _told(reach: Reach, label: str, trial: Trial) -> Figures:
    """Tell what a trial did not reach; return what it did."""
    if words := reach.words():
        trial.note(f"{label}: {words}")
    return reach.figures()


def _is_tried(run: Run) -> bool:
    return run.config.run.admission == "full" and is_tried(run.config.score)


def _sampled(samples: Sequence[Sample]) -> Figures:
    return {"rows": len(samples), "tokens": sum(len(sample.ids) for sample in samples)}


def _halves(prompts: Sequence[Ids]) -> Rows:
    """Return prompts as rows: the second half of each stands for a response."""
    cut = [max(1, len(p) // 2) for p in prompts]
    responses = [p[at:] if len(p) > at else p for p, at in zip(prompts, cut, strict=True)]
    return Rows([p[:at] for p, at in zip(prompts, cut, strict=True)], responses)


def _record(run: Run, subject: str, seen: Figures, figures: Figures) -> AdmissionRecord:
    mark = fingerprint(seen)
    return AdmissionRecord(
        run=run.name, subject=subject, seen=seen, fingerprint=mark, figures=figures
    )


def _key(run: Run, subject: str, seen: Figures) -> str:
    return admission_key(run.name, subject, fingerprint(seen))


def _keep(run: Run, record: AdmissionRecord) -> None:
    key = admission_key(run.name, record.subject, record.fingerprint)
    create_record(run.storage, key, record)
