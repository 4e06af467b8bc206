"""Write docs/commands.md: every command with its options, and the exit codes.

Usage: python docs/make_commands.py [--check]

Commands come from the command line itself, exit codes from schemas/errors.py. With --check nothing
is written, and the exit status is 1 where the file is out of date.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from generated import main

from cli.main import app
from schemas.errors import INTERRUPTED_EXIT_CODE, OpdError, StoppedError

TARGET = Path(__file__).with_name("commands.md")

INTRODUCTION = """\
# Commands

<!-- Written by docs/make_commands.py from the command line itself and schemas/errors.py. -->

```sh
opd COMMAND --help      # the same in a terminal
```

A relative path starts from the working folder, one in a TOML from the folder of the TOML. Results
go to stdout, progress and messages to stderr. Every command may be called again: what is done
stays done.
"""

CODES = """\
## Exit codes

| code | meaning |
|-|-|
| 0 | Done, or nothing was left to do. |
| 1 | A bug of opd: report it with its traceback. |
"""


def render() -> str:
    """Return the whole text of the page."""
    lines = [INTRODUCTION]
    for name, command in commands():
        lines += _section(name, command)
    return "\n".join([*lines, CODES + "\n".join(_codes()), ""])


def commands() -> Iterator[tuple[str, Any]]:
    """Yield the full name of every command, and the command; a group yields what is in it."""
    yield from _below("opd", typer.main.get_command(app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, one in inner.items():
        yield from _below(f"{name} {word}", one)


def _section(name: str, command: Any) -> Iterator[str]:
    """Yield the lines about a command."""
    context = command.context_class(command, info_name=name)
    yield from (f"## `{name}`", "")
    yield from (" ".join(part.split()) + "\n" for part in (command.help or "").split("\n\n"))
    records = [one for p in command.params if (one := p.get_help_record(context))]
    if records:
        yield from ("| option | meaning |", "|-|-|")
    for option, meaning in records:
        words = " ".join(meaning.split()).replace("|", "\\|").replace("<", "&lt;")
        yield f"| `{option}` | {words} |"
    yield ""


def _codes() -> Iterator[str]:
    """Yield the rows of the exit codes that have a class."""
    kinds = [kind for kind in OpdError.__subclasses__() if kind is not StoppedError]
    for kind in sorted(kinds, key=lambda kind: kind.exit_code):
        words = " ".join((kind.__doc__ or "").split())
        yield f"| {kind.exit_code} | {words} |"
    words = "Interrupted by Ctrl-C or SIGTERM: run the same command again."
    yield f"| {INTERRUPTED_EXIT_CODE} | {words} |"


if __name__ == "__main__":
    main(TARGET, render, __doc__)
