"""A new run: what is asked becomes a TOML of few lines, and prompts where there are none.

Promises: nothing that exists is overwritten, and nothing is written where something is wrong.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.prompts.files import PromptFile, require_prompt_file
from pipeline.rewards.location import find_grader
from pipeline.setup.asked import Asked, check_asked
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
    check_asked(asked)
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

    def text_of(facts: Facts) -> str:
        return _text(out.name, propose(facts), given, found)

    draft = parse_config(text_of(facts), where=str(out))
    _check_grader(draft, out.parent)
    files = _prompt_files(out.parent, draft, made)
    if columns := proposed_columns(files["prompts.train"]):
        given["prompts"]["columns"] = columns
        mapped = ", ".join(f"{ours} = {theirs}" for ours, theirs in columns.items())
        where = files["prompts.train"].location
        note(f"prompts: {where} has other names of columns, mapped: {mapped}")
    if student.tokenizer is not None:
        facts = _with_prompts(facts, files, student.tokenizer, text_of=text_of, note=note)
    proposal = propose(facts)
    text = _text(out.name, proposal, given, found)
    parse_config(text, where=str(out))
    for words in proposal.warnings:
        note(f"warning: {words}")
    _write(out, text, made, note)
    return asked.out


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
    files: Mapping[str, PromptFile],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    text_of: Callable[[Facts], str],
    note: Note,
) -> Facts:
    """Return what is known with what the prompts are like, those that are held out too."""

    def look(facts: Facts) -> dict[str, PromptFacts]:
        draft = parse_config(text_of(facts), where=TRAIN, overrides=[ANY_LENGTH])
        return {key: look_at_prompts(one, draft, tokenizer, key=key) for key, one in files.items()}

    seen = look(facts)
    if answered := sum(one.answered for one in seen.values()):
        facts = replace(facts, answered=answered)
        note(f"prompts: {answered:,} end with an answer, which is left off")
        seen = look(facts)
    for key, one in seen.items():
        note(f"{key}: {one.words}")
    return replace(
        facts,
        prompts=seen["prompts.train"].count,
        longest=max(one.longest for one in seen.values()),
        unusable=", ".join(one.unusable for one in seen.values() if one.unusable),
    )


def _check_grader(config: RunConfig, folder: Path) -> None:
    if config.eval is not None:
        find_grader(config.eval, ConfigPlace(str(folder)))


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


def _prompt_files(
    folder: Path, config: RunConfig, made: Mapping[str, bytes]
) -> dict[str, PromptFile]:
    """Return the prompt files of the run by their keys, those that are to be made among them."""
    place, found = ConfigPlace(str(folder)), dict[str, PromptFile]()
    for key, source in (("train", config.prompts.train), ("eval", config.prompts.eval)):
        key = f"prompts.{key}"
        if source is not None and source in made:
            found[key] = PromptFile(source, sha256(made[source]), made[source])
        elif source is not None:
            found[key] = require_prompt_file(place, source, key=key, config=config)
    return found


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
