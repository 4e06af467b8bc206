"""What a user says of a new run, and what is wrong with it at first sight. Reads no model."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.setup.prompts import TASK
from schemas.errors import ConfigError, ConflictError


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


def check_asked(asked: Asked) -> None:
    """Refuse what can be seen to be wrong before any model is looked at.

    Raises:
        ConfigError: options do not go together, or name what is not there.
        ConflictError: the TOML exists.
    """
    _check_free(asked.out, asked.out.absolute())
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


def _check_free(shown: Path, out: Path) -> None:
    if os.path.lexists(out):
        raise ConflictError(
            f"{shown} exists, and nothing is overwritten: name another file with --out, or delete "
            "it"
        )
    if not out.parent.is_dir():
        raise ConfigError(f"--out {shown}: there is no folder {out.parent}; make it first")
