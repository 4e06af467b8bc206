"""Options that the cache commands share: which root, and which scorer of it."""

from typing import Annotated

import typer

from schemas.config.section import MOST

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
SampleOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, max=MOST, help="Read N random shards of each scorer only."),
]
RescoreOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, max=MOST, help="Re-score N stored rows and report the drift in nats."
    ),
]
