"""The report command: a run, or several, as one page."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli.options import JsonOption, SetOption, load_run
from cli.output import in_bytes, print_json
from cli.terminal import say

MOST_ROWS = 10_000
"""Most sequences that a page is made of; its bytes are bounded besides."""

ConfigsOption = Annotated[
    list[str],
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="TOML file of a run: a path or a URL. Given several times, the runs are compared.",
        show_default=False,
    ),
]


def report(
    configs: ConfigsOption,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="The page; an older one is replaced."),
    ] = Path("report.html"),
    rows: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=MOST_ROWS,
            help="Sequences of a round that are looked at token by token, and transcripts in all.",
        ),
    ] = 200,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Free column of the prompt file that divides prompts into families; default the "
            "one that tells the most apart.",
            show_default=False,
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run as one HTML page: figures, charts, transcripts.

    It is made of stored records alone, so it may be made anywhere and at any time, also while the
    run goes on. Several -c compare runs; --set applies to each of them.
    """
    from pipeline.report.writing import write_report

    runs = [load_run(config, overrides) for config in configs]
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    made = write_report(runs, out, rows=rows, column=by, written_at=now)
    if as_json:
        print_json({"stage": "report", "runs": [run.name for run in runs], **made.fields()})
    else:
        say(f"{made.path}: {in_bytes(made.bytes)}, {made.rounds} rounds")
