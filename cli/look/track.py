"""The track command: tell trackers what they do not know yet of a run."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import ConfigOption, JsonOption, SetOption, load_run
from cli.output import print_json
from cli.terminal import say, warn
from pipeline.runs.run import Run
from schemas.errors import ConfigError, StorageError
from schemas.foreign import shown

if TYPE_CHECKING:
    pass

ROWS = 100
"""Sequences of a round that the report which is sent looks at."""


def track(
    config: ConfigOption,
    overrides: SetOption = None,
    follow: Annotated[
        str | None,
        typer.Option(
            metavar="TRACKER",
            help="Stay, and look again for each byte on stdin: what stages start.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell trackers such as TensorBoard what they do not know yet of a run.

    The table [track] names them. Stages tell them by themselves; this sends what they could not, or
    all of a run that had no tracker.
    """
    from pipeline.trackers import following
    from pipeline.trackers.sending import Sender

    run = load_run(config, overrides)
    section = run.config.track
    if section is None:
        raise ConfigError(
            "the configuration has no [track]: name a tracker in it, such as "
            '[track.tensorboard] with folder = "tensorboard"'
        )
    report = _report if section.report else None
    if follow is not None and follow not in section.kinds:
        raise ConfigError(f"--follow takes one of {list(section.kinds)}; found {shown(follow)}")
    if follow is not None:
        following.follow(run, follow, report)
        return
    counts, failed = dict[str, int](), list[str]()
    for kind in section.kinds:
        sender = Sender(run, kind, failed.append)
        sender.catch_up()
        sender.finish(report)
        counts[kind] = sender.count
    warn(*failed)
    if as_json:
        print_json({"stage": "track", "run": run.name, "sent": counts, "failed": failed})
    else:
        say(*(f"{kind}: {count} parts were sent" for kind, count in counts.items()))
    if failed:
        raise typer.Exit(StorageError.exit_code)


def _report(run: Run, page: Path) -> None:
    """Write the report of a run where it can be made."""
    from pipeline.report.drawing.charts import require_library
    from pipeline.report.writing import write_report

    with suppress(ConfigError):
        require_library()
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_report([run], page, rows=ROWS, column=None, written_at=now)
