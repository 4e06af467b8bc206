"""The cache commands: what the teacher caches of a root hold, and their upkeep."""

import typer

from cli import reprocess

app = typer.Typer(
    help="Look into the teacher caches of a root, check them and clean up.", no_args_is_help=True
)
app.command("reprocess")(reprocess.reprocess)
