"""Options that several commands share, and what they are turned into."""

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.runs.configsource import read_config
from pipeline.runs.run import Run, open_run
from pipeline.runs.units import Worker
from pipeline.store.storage import Storage
from schemas.config.run import MAX_ROUNDS
from schemas.errors import ConfigError
from schemas.foreign import shown

LAST_ROUND = MAX_ROUNDS - 1
"""Largest number that a round can have."""

MAX_WORKERS = 65536
"""Most workers that share a stage."""


def round_option(text: str) -> Any:
    """Return the option `--round`, for a command to which it means what a text says."""
    return typer.Option("--round", "-r", metavar="N", min=0, max=LAST_ROUND, help=text)


ConfigOption = Annotated[
    str,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="TOML file of the run: a path or a URL such as s3://bucket/run.toml.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override a key of the configuration, such as loss.kind=jsd; may be repeated.",
        show_default=False,
    ),
]
RoundOption = Annotated[
    int,
    round_option("Number of the round, from 0."),
]
WorkerOption = Annotated[
    str | None,
    typer.Option(
        "--worker",
        metavar="I/N",
        help="Do every N-th unit only, as worker I of N, counted from 0. Without it a process "
        "takes any unit that is missing, and several processes may run at once.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object as the last line of stdout, and events to stderr."
    ),
]


def load_run(config: str, overrides: list[str] | None) -> Run:
    """Return the run of a configuration file.

    Raises:
        ConfigError: the file or an override is wrong.
    """
    return open_run(read_config(config, overrides or ()))


def in_words(config: str, overrides: Sequence[str] | None) -> str:
    """Return the options that name a run again, as a shell takes them."""
    given = ["-c", config, *(word for item in overrides or () for word in ("--set", item))]
    return shlex.join(given)


def open_store(
    config: str | None,
    root: str | None,
    overrides: list[str] | None,
    *,
    may_be_new: bool = False,
) -> Storage:
    """Return the store of a configuration, or of a root that is named directly.

    Args:
        config: TOML file of a run; a path or URL.
        root: the root itself.
        overrides: keys of the configuration to replace.
        may_be_new: whether a root that is named directly may be a folder that is not there yet.

    Raises:
        ConfigError: not exactly one of them, or one that is wrong.
    """
    if (config is None) == (root is None):
        raise ConfigError("give either --config FILE or --root URL")
    if config is not None:
        return load_run(config, overrides).storage
    if overrides:
        raise ConfigError("--set changes keys of a configuration: it needs --config, not --root")
    return open_root(root or "", may_be_new=may_be_new)


def open_root(root: str, *, may_be_new: bool = False) -> Storage:
    """Return the store of a root that is named directly.

    Raises:
        ConfigError: it cannot be a store, or it is a folder that is not there.
    """
    storage = Storage(root)
    folder = storage.local_root
    if folder is not None and not folder.is_dir() and not may_be_new:
        raise ConfigError(f"there is no folder {folder}{_nearest_folder(folder)}")
    return storage


def _nearest_folder(folder: Path) -> str:
    """Return a hint at the folder that may have been meant."""
    parent = next(place for place in folder.parents if place.is_dir())
    missing = folder.relative_to(parent).parts[0]
    names = [place.name for place in parent.iterdir() if place.is_dir()]
    close = difflib.get_close_matches(missing, names, n=1, cutoff=0.4)
    return f"; did you mean {parent / close[0]}?" if close else f"; {parent} is there"


def parse_worker(text: str | None) -> Worker:
    """Return the worker that `i/n` names; the only one without it.

    Raises:
        ConfigError: not two numbers with 0 ≤ i < n.
    """
    if text is None:
        return Worker()
    match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
    if match is None or not int(match[1]) < int(match[2]) <= MAX_WORKERS:
        raise ConfigError(f"--worker takes I/N with 0 ≤ I < N, such as 0/4; found {shown(text)}")
    return Worker(int(match[1]), int(match[2]))
