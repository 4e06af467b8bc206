"""Options that the cache commands share: which root, and which scorer of it."""

from typing import Annotated

import typer

SomeConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="TOML file of a run of the root: a path or a URL."
    ),
]
ScorerArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="SCORER",
        help="First characters of a scorer's key; default all scorers of the root.",
    ),
]
RootOption = Annotated[
    str | None,
    typer.Option("--root", metavar="URL", help="The root itself, without a configuration."),
]
OneScorerArgument = Annotated[
    str, typer.Argument(metavar="SCORER", help="First characters of the scorer's key.")
]
