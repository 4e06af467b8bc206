"""The cache commands: what the teacher caches of a root hold, and their upkeep."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import cachetables
from cli.options import JsonOption, SetOption, load_run
from cli.output import print_json
from pipeline.storage import Storage
from schemas.errors import ConfigError

app = typer.Typer(
    help="Look into the teacher caches of a root, check them and clean up.", no_args_is_help=True
)

SomeConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file of a run of the root.")
]
RootOption = Annotated[
    str | None,
    typer.Option("--root", metavar="URL", help="The root itself, without a configuration."),
]


@app.command("ls")
def list_(
    config: SomeConfigOption = None,
    root: RootOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the scorers: teacher, codec, size, and the rounds that use them."""
    from pipeline.inventory import list_caches

    storage = open_store(config, root, overrides)
    entries = list(list_caches(storage))
    if as_json:
        print_json({"root": storage.root, "scorers": [asdict(entry) for entry in entries]})
    else:
        cachetables.print_caches(storage.root, entries)


def open_store(config: Path | None, root: str | None, overrides: list[str] | None) -> Storage:
    """Return the store of a configuration, or of a root that is named directly.

    Raises:
        ConfigError: not exactly one of them, or one that is wrong.
    """
    if (config is None) == (root is None):
        raise ConfigError("give either --config FILE or --root URL")
    if config is not None:
        return load_run(config, overrides).storage
    if overrides:
        raise ConfigError("--set changes keys of a configuration: it needs --config, not --root")
    return Storage(root or "")
