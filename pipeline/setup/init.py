"""A new run: what is asked becomes a TOML of few lines, and prompts where there are none.

Promises: nothing that exists is overwritten, and nothing is written where something is wrong.
"""

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.prompts.files import PromptFile, require_prompt_file
from pipeline.setup.models import UNKNOWN_COMMIT, FoundModel, look_at, same_tokenizer
from pipeline.setup.prompts import (
    HELD_OUT,
    TASK,
    TRAIN,
    PromptFacts,
    look_at_prompts,
    proposed_columns,
    sample_files,
    task_files,
)
from pipeline.setup.proposal import Facts, Proposal, propose
from pipeline.setup.text import toml_of
from pipeline.sizing.machine import Machine
from pipeline.store.disk import files
from pipeline.store.disk.scratch import disk_fault
from pipeline.store.place import ConfigPlace
from schemas.config.file import parse_config
from schemas.config.run import RunConfig
from schemas.errors import ConfigError, ConflictError
from schemas.fingerprint import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Note = Callable[[str], None]

ANY_LENGTH = "prompts.max_tokens=2147483647"


@dataclass(frozen=True)
class Asked:
    """What a user says of a run; paths start from the working folder."""

    student: str
    teacher: str
    prompts: str | None = None
    """A file, a URL, or the name of the built-in task; None for samples."""
    held_out: str | None = None
    grader: str | None = None
    root: str | None = None
    """None for a folder beside the TOML."""
    out: Path = Path("run.toml")
    base: str | None = None


@dataclass(frozen=True)
class _Found:
    """The models of a run, and in what their tokenizers are the same."""

    student: FoundModel
    teacher: FoundModel
    check: str | None


def init_run(asked: Asked, machine: Machine, *, note: Note) -> Path:
    """Write the TOML of a new run, and its prompts where there are none; return the TOML's path.

    Args:
        asked: what the run is to be.
        machine: where it will be.
        note: told what was found, and what could not be.

    Raises:
        ConfigError: a model or a file cannot be used.
        IdentityError: teacher and student do not share a vocabulary.
        ConflictError: the TOML exists.
    """
    out = asked.out.absolute()
    _check_free(asked.out, out)
    _check_asked(asked)
    here = ConfigPlace(os.getcwd())
    student, teacher = (
        look_at(here, asked.student, "student"),
        look_at(here, asked.teacher, "teachers.main"),
    )
    note(f"machine: {machine.words}")
    note(f"student {asked.student}: {student.words}")
    note(f"teacher {asked.teacher}: {teacher.words}")
    found = _Found(student, teacher, same_tokenizer(student, teacher))
    made = _made_files(asked, out.parent, student)
    given = _given(asked, found, out.parent)
    facts = _facts(asked, machine, found)
    draft = parse_config(_text(out.name, propose(facts), given, found), where=str(out))
    file = _prompt_file(out.parent, draft, made)
    if columns := proposed_columns(file):
        given["prompts"]["columns"] = columns
        mapped = ", ".join(f"{ours} = {theirs}" for ours, theirs in columns.items())
        note(f"prompts: {file.location} has other names of columns, mapped: {mapped}")

    def text_of(facts: Facts) -> str:
        return _text(out.name, propose(facts), given, found)

    if student.tokenizer is not None:
        facts, words = _with_prompts(facts, file, student.tokenizer, text_of)
        note(f"prompts {asked.prompts or TRAIN}: {words}")
    proposal = propose(facts)
    text = _text(out.name, proposal, given, found)
    parse_config(text, where=str(out))
    for words in proposal.warnings:
        note(f"warning: {words}")
    _write(out, text, made, note)
    return asked.out


def _check_free(shown: Path, out: Path) -> None:
    if os.path.lexists(out):
        raise ConflictError(
            f"{shown} exists, and nothing is overwritten: name another file with --out, or delete "
            "it"
        )
    if not out.parent.is_dir():
        raise ConfigError(f"--out {shown}: there is no folder {out.parent}; make it first")


def _check_asked(asked: Asked) -> None:
    """Refuse what can be seen to be wrong before any model is looked at."""
    prompts = asked.prompts
    if prompts not in (None, TASK) and asked.grader and asked.held_out is None:
        raise ConfigError(
            "--grader needs prompts that are held out, with a reference each: name their file with "
            "--held-out"
        )
    if asked.held_out is not None and asked.grader is None:
        raise ConfigError(
            f"--held-out {asked.held_out} needs a grader: name it with --grader, such as "
            "last_number"
        )
    is_there = prompts in (None, TASK) or os.path.lexists(prompts or "")
    if not is_there and difflib.get_close_matches(prompts or "", [TASK], cutoff=0.7):
        raise ConfigError(
            f"--prompts {prompts}: there is no such file; did you mean {TASK!r}, the built-in task?"
        )


def _made_files(asked: Asked, folder: Path, student: FoundModel) -> dict[str, bytes]:
    """Return the prompt files that are to be made in a folder, by name."""
    if asked.prompts == TASK:
        made = task_files()
    elif asked.prompts is None:
        made = sample_files(student.tokenizer)
    else:
        made = {}
    if asked.grader is None or asked.held_out is not None:
        made.pop(HELD_OUT, None)
    if asked.prompts == TASK:
        taken = [name for name in made if os.path.lexists(folder / name)]
        if taken:
            raise ConflictError(
                f"{folder / taken[0]} exists, and nothing is overwritten: name it with --prompts, "
                "or take another folder with --out"
            )
    return {name: data for name, data in made.items() if not os.path.lexists(folder / name)}


def _given(asked: Asked, found: _Found, folder: Path) -> dict[str, dict[str, Any]]:
    """Return what is no proposal: names, places, models."""
    own = asked.prompts in (None, TASK)
    prompts = {"train": TRAIN if own else _placed(asked.prompts or "", folder)}
    if asked.grader is not None:
        prompts["eval"] = _placed(asked.held_out, folder) if asked.held_out else HELD_OUT
    root = "opd-data" if asked.root is None else _placed(asked.root, folder)
    teacher: dict[str, Any] = _model(found.teacher, folder)
    if found.check == "vocabulary":
        teacher["tokenizer_check"] = "vocabulary"
    given: dict[str, dict[str, Any]] = {
        "run": {"name": _run_name(asked.student), "root": root},
        "student": _model(found.student, folder),
        "teachers": {"main": teacher},
        "prompts": prompts,
    }
    if asked.grader is not None:
        given["eval"] = {"reward": asked.grader}
    return given


def _model(found: FoundModel, folder: Path) -> dict[str, Any]:
    if found.revision is not None:
        return {"model": found.name, "revision": found.revision}
    return {"model": _placed(found.name, folder)}


def _placed(location: str, folder: Path) -> str:
    """Return a path from the working folder as one from the TOML's where it lies near."""
    if "://" in location or location.startswith("~"):
        return location
    whole = os.path.abspath(location)
    near = os.path.relpath(whole, folder)
    return whole if near.startswith(os.path.join("..", "..")) else near


def _run_name(student: str) -> str:
    last = Path(student).name if Path(student).name not in ("", ".", "..") else "run"
    name = re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip("._-")[:64]
    return name or "run"


def _facts(asked: Asked, machine: Machine, found: _Found) -> Facts:
    student, teacher = found.student, found.teacher
    held = [one.context for one in (student, teacher) if one.context is not None]
    sizes = [one.vocabulary for one in (student, teacher) if one.vocabulary is not None]
    return Facts(
        machine=machine,
        parameters=student.parameters,
        vocabulary=min(sizes, default=None),
        context=min(held, default=None),
        teacher_parameters=teacher.parameters,
        is_graded=asked.grader is not None,
        base=asked.base,
    )


def _with_prompts(
    facts: Facts,
    file: PromptFile,
    tokenizer: "PreTrainedTokenizerBase",
    text_of: Callable[[Facts], str],
) -> tuple[Facts, str]:
    """Return what is known with what the prompts are like, and that in words."""

    def look(facts: Facts) -> PromptFacts:
        draft = parse_config(text_of(facts), where=TRAIN, overrides=[ANY_LENGTH])
        return look_at_prompts(file, draft, tokenizer)

    prompts, words = look(facts), ""
    if prompts.answered:
        facts = replace(facts, answered=prompts.answered)
        words = f"; {prompts.answered:,} end with an answer, which is left off"
        prompts = look(facts)
    known = replace(
        facts, prompts=prompts.count, longest=prompts.longest, unusable=prompts.unusable
    )
    return known, prompts.words + words


def _text(name: str, proposal: Proposal, given: dict[str, dict[str, Any]], found: _Found) -> str:
    notes = {"student": found.student.words, "teachers": found.teacher.words}
    if found.check == "vocabulary":
        notes["teachers"] += "\ntokenizer_check: all ids mean the same, special roles differ"
    for table, one in (("student", found.student), ("teachers", found.teacher)):
        if one.revision == UNKNOWN_COMMIT:
            notes[table] = (
                f"REPLACE the revision by the commit hash of {one.name}, which stands on its page "
                "of the hub"
            )
    return toml_of(proposal, given, notes=notes, file=name)


def _prompt_file(folder: Path, config: RunConfig, made: dict[str, bytes]) -> PromptFile:
    """Return the prompts of the run, one of the files that are to be made among them."""
    source = config.prompts.train
    if source in made:
        return PromptFile(source, sha256(made[source]), made[source])
    return require_prompt_file(ConfigPlace(str(folder)), source, key="prompts.train", config=config)


def _write(out: Path, text: str, made: dict[str, bytes], note: Note) -> None:
    """Write what a run needs, its TOML last."""
    try:
        for name, data in made.items():
            files.create(out.parent / name, data)
            count = len(data.splitlines())
            note(f"wrote {name}: {count:,} prompts")
        files.create(out, text.encode())
    except FileExistsError as error:
        raise ConflictError(
            f"{error.filename2 or out} exists by now: run the command again"
        ) from error
    except OSError as error:
        if disk_fault(error):
            raise
        raise ConfigError(f"cannot write to {out.parent}: {error.strerror}") from error
