"""The commands for an own run from nothing: init and try."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import JsonOption
from cli.output import print_json
from cli.terminal import say
from schemas.errors import ConfigError

QUESTIONS = {
    "student": "Student: the folder of a model, or a name of the hub",
    "teacher": "Teacher: a larger model of the same tokenizer",
    "prompts": "Prompts: a file, a URL, `addition`; empty for three samples",
    "grader": "Grader of held-out prompts, such as last_number; empty for none",
    "held_out": "Held-out prompts, each with a reference: a file or a URL",
}
"""Option → question on a terminal, where it was not given."""

NEEDED = ("student", "teacher")

BUILT_IN = "addition"
"""The task that brings its own prompts, held-out ones too."""


def init(
    student: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The model that learns: a folder, or a name of the hub."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model that scores, of the same tokenizer."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Prompts: a file, a URL such as hf://datasets/…, or the task `addition`; default "
            "three samples in prompts.jsonl.",
            show_default=False,
        ),
    ] = None,
    grader: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Grader of held-out prompts, such as last_number."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out", metavar="FILE", help="Prompts that are graded, each with a reference."
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Store of the run: a folder or s3://bucket/prefix; default opd-data beside FILE.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE", help="opd:full, opd:lora or opd:cpu; default by the GPUs found."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The TOML to write.")] = Path(
        "run.toml"
    ),
    as_json: JsonOption = False,
) -> None:
    """Write the TOML of a run of your own: few lines, each with its reason.

    Looks at both models, at the prompts and at this machine. On a terminal it asks for what no
    option says. Nothing that exists is overwritten.
    """
    given = {"student": student, "teacher": teacher, "prompts": prompts, "grader": grader}
    given |= {"held_out": held_out}  # last: whether it is asked for depends on the others
    answers = _answers(given, may_ask=not as_json and sys.stdin.isatty() and sys.stdout.isatty())
    from pipeline.setup.asked import Asked
    from pipeline.setup.init import init_run
    from pipeline.setup.models import UNKNOWN_COMMIT
    from pipeline.sizing.machine import this_machine

    notes: list[str] = []

    def note(words: str) -> None:
        notes.append(words)
        if not as_json:
            say(words)

    asked = Asked(**answers, root=root, out=out, base=base)
    path = init_run(asked, this_machine(), note=note)
    missing = UNKNOWN_COMMIT in path.read_text(encoding="utf-8")
    following = f"opd try -c {shlex.quote(str(path))}"
    if as_json:
        print_json({"config": str(path), "notes": notes, "next": following})
        return
    todo = "put the commit hashes into it" if missing else "look at it"
    say(f"wrote {path}", "", f"Next: {todo}, then try it with a small round", f"  {following}")


def _answers(given: dict[str, str | None], *, may_ask: bool) -> dict[str, Any]:
    """Return what was given, and on a terminal what was asked for."""
    if may_ask:
        for name in [name for name, value in given.items() if value is None]:
            own = given["prompts"] not in (None, BUILT_IN)
            if name == "held_out" and not (own and given["grader"]):
                continue
            default = None if name in (*NEEDED, "held_out") else ""
            answer = typer.prompt(QUESTIONS[name], default=default, show_default=False).strip()
            given[name] = answer or None
    missing = [f"--{name}" for name in NEEDED if not given[name]]
    if missing:
        raise ConfigError(
            f"give {' and '.join(missing)}: a folder in the Hugging Face format, or a name of the "
            "hub. On a terminal `opd init` asks for them"
        )
    return given
