"""Options that several commands share, and what they are turned into."""

import re
from pathlib import Path
from typing import Annotated

import typer

from pipeline.run import Run, open_run
from pipeline.stage import Worker
from schemas.configfile import load_config
from schemas.errors import ConfigError

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="TOML file of the run.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override a key of the configuration; may be repeated.",
        show_default=False,
    ),
]
RoundOption = Annotated[
    int, typer.Option("--round", "-r", min=0, help="Number of the round, from 0.")
]
WorkerOption = Annotated[
    str | None,
    typer.Option(
        "--worker",
        metavar="I/N",
        help="Do only every N-th unit, as worker I of N (from 0), when several machines share a "
        "stage. Without it a process takes any unit that is missing; several may run at once.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object as the last line of stdout, events to stderr."
    ),
]


def load_run(config: Path, overrides: list[str] | None) -> Run:
    """Return the run of a configuration file.

    Raises:
        ConfigError: the file or an override is wrong.
    """
    return open_run(load_config(config, overrides or ()))


def parse_worker(text: str | None) -> Worker:
    """Return the worker that `i/n` names; the only one without it.

    Raises:
        ConfigError: not two numbers with 0 ≤ i < n.
    """
    if text is None:
        return Worker()
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--worker takes I/N with 0 ≤ I < N, such as 0/4; found {text!r}")
    return Worker(int(match[1]), int(match[2]))
